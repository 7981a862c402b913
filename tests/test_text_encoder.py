import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from pdiff_hf.text_encoder import TextEncoder
from small_encoders import save_encoder


def test_an_embedding_is_the_mean_over_the_tokens_of_the_sentence(tmp_path):
    encoder = TextEncoder(save_encoder(tmp_path), batch_size=2)
    sentences = ["a cat", "two dogs and a cat", "a cat"]
    found = encoder(sentences)
    assert found.shape == (3, encoder.size) == (3, 8) and found.dtype == torch.float32
    # Neither padding nor the rest of the batch is seen in it.
    torch.testing.assert_close(found, torch.cat([encoder([s]) for s in sentences]))
    assert torch.equal(found[0], encoder(["a cat", "two dogs"])[0]) and not torch.equal(found[0], found[1])
    model = BertModel.from_pretrained(tmp_path).eval()
    tokens = PreTrainedTokenizerFast.from_pretrained(tmp_path)("a cat", return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens).last_hidden_state.mean(1)
    torch.testing.assert_close(found[:1], expected)


def test_long_sentences_are_cut(tmp_path):
    encoder = TextEncoder(save_encoder(tmp_path))
    assert torch.equal(encoder(["a cat " * 256]), encoder(["a cat " * 300]))


def test_an_encoder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^expected a text encoder .* found none under '.*'.*name another one\.$"):
        TextEncoder(str(tmp_path / "none"))


def test_an_encoder_needs_padding(tmp_path):
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    BertModel(
        BertConfig(vocab_size=2, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a text encoder with a padding token"):
        TextEncoder(str(tmp_path))
