"""Texts of a dataset as token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordLevelTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

# In the order of their ids, as far as BERT's configuration in transformers expects one: padding is 0.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def make_word_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the most frequent words of some texts, lower case and without accents.

    The same texts give the same tokenizer: words of equal frequency are in alphabetical order.

    Args:
        texts (`Iterable[str]`): What is counted.
        vocab_size (`int`): Number of tokens, with the four special ones.

    Returns:
        `PreTrainedTokenizerFast`: `[CLS] text [SEP]`, or `[CLS] text [SEP] other text [SEP]`.
    """
    tokenizer = Tokenizer(WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    trainer = WordLevelTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, SPECIAL_TOKENS, strict=True)))


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer of a folder or of the Hub; its code is never executed.

    Raises:
        ValueError: there is none, or it has no padding token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected a tokenizer in a folder or on the Hub, found none under {name!r} "
            f"({str(error).splitlines()[0]}); correct task.tokenizer, or set it to words"
        ) from error
    if tokenizer.pad_token_id is None:
        raise ValueError(f"expected a tokenizer with a padding token, found none in {name!r}; name another one")
    return tokenizer


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the tokens in the order of their ids."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256("\n".join(token for token, _ in tokens).encode()).hexdigest()


def token_ids(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    max_length: int | None = None,
) -> list[np.ndarray] | np.ndarray:
    """Ids of texts: `(N, max_length)` int64, cut and padded; without `max_length` one array of its own length each."""
    options = {"return_attention_mask": False, "return_token_type_ids": False}
    if max_length is not None:
        options |= {"truncation": True, "padding": "max_length", "max_length": max_length}
    ids = tokenizer(list(texts), None if pairs is None else list(pairs), **options)["input_ids"]
    return [np.array(row) for row in ids] if max_length is None else np.array(ids, dtype=np.int64)
