"""Text classification on any Hugging Face text dataset, with transformers' tokenizers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import datasets
import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordLevelTrainer
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..base_model import BaseModel
from ..own_code import package_path
from ..wording import setting
from .config import TextClassificationConfig
from .sources import check_fingerprint, load_splits
from .splits import Split, check_columns, class_labels, divide
from .task import Task

# In the order of their ids, as far as BERT's configuration in transformers expects one: padding is 0.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# The one tokenizer that is made here.
WORDS = "words"
# Longer texts are cut unless the configuration says otherwise.
MAX_LENGTH = 512


class TextClassification(Task):
    """Texts as token ids and labels in three disjoint splits.

    Inputs are `(N, L)` int64, padded on the tokenizer's side. Where the padding is, and so the attention mask, follows
    from the ids: see [`forward_logits`]. Token types are not passed on.

    The tokenizer `words` has the most frequent words of those rows of the train split that are neither val nor test,
    whatever `train_size`; so it can be made again, and is: its vocabulary is compared by a recorded hash.

    Args:
        config ([`TextClassificationConfig`]): Where the texts are and how they are prepared.
        base_model ([`BaseModel`], *optional*): A transformers base model; its padding token and vocabulary are
            compared with the tokenizer's.

    Attributes:
        tokenizer (`PreTrainedTokenizerBase`): From texts to ids.

    Raises:
        ValueError: the dataset, a split or a column is missing, a file is damaged, labels are out of range, or the
            tokenizer is missing or does not fit the base model.
    """

    noun = "texts"
    config: TextClassificationConfig

    def __init__(self, config: TextClassificationConfig, base_model: BaseModel | None = None):
        super().__init__()
        # 1. Rows and labels in three disjoint splits
        stored = load_splits(config, self.noun)
        keys = ["text_column", *(["text_pair_column"] if config.text_pair_column else []), "label_column"]
        columns = {key: getattr(config, key) for key in keys}
        check_columns(stored, columns)
        labels, self.class_names = class_labels(stored, config.train_split, config.label_column)
        stored = stored.select_columns(list(dict.fromkeys(columns.values())))
        fingerprint = check_fingerprint(config, stored, labels)
        self._text_columns = [columns[key] for key in keys[:-1]]
        parts = divide(config, labels)
        for split, (name, index) in parts.items():
            self._rows[split] = stored[name].select(index)
            self._labels[split] = torch.from_numpy(labels[name][index])

        # 2. The tokenizer
        held_out = [index for split, (name, index) in parts.items() if split != "train" and name == config.train_split]
        pool = np.setdiff1d(np.arange(len(labels[config.train_split])), np.concatenate([[], *held_out]))
        pool_texts = self._texts(stored[config.train_split].select(pool))
        network = None
        if base_model is not None and base_model.library == "transformers":
            values = dict(base_model.kwargs["config"])
            network = AutoConfig.for_model(values.pop("model_type"), **values)
        name = config.tokenizer or getattr(network, "name_or_path", None)
        if not name:
            raise ValueError(
                f"expected a tokenizer, found none that belongs to the base model; give {setting('task.tokenizer')}"
            )
        if name == WORDS:
            self.tokenizer = make_word_tokenizer((text for column in pool_texts for text in column), config.vocab_size)
        else:
            self.tokenizer = load_tokenizer(name)
        if network is not None:
            _check_network(self.tokenizer, network)
        ids = self.tokenizer.get_vocab()
        vocabulary = hashlib.sha256("\n".join(sorted(ids, key=ids.get)).encode()).hexdigest()
        if config.vocabulary_sha256 not in (None, vocabulary):
            raise ValueError(
                f"expected the tokens with sha256 {config.vocabulary_sha256[:12]}…, found {vocabulary[:12]}… by "
                f"{name!r}; the train texts or the tokenizer were changed"
            )

        # 3. The length of all inputs
        max_length = config.max_length
        if max_length is None:
            limit = min(MAX_LENGTH, getattr(network, "max_position_embeddings", None) or MAX_LENGTH)
            max_length = min(limit, max(map(len, token_ids(self.tokenizer, *pool_texts))))
        found = {"tokenizer": name, "max_length": max_length, "vocabulary_sha256": vocabulary}
        self.config = config.model_copy(update={**found, "dataset_fingerprint": fingerprint})

    @property
    def bytes_per_example(self) -> int:
        """Memory of one text's token ids, int64."""
        return 8 * self.config.max_length

    def _prepare(self, split: Split) -> torch.Tensor:
        texts = self._texts(self._rows[split])
        return torch.from_numpy(token_ids(self.tokenizer, *texts, max_length=self.config.max_length))

    def encode(self, text: str) -> torch.Tensor:
        """Any text as a network of the task takes it, token ids `(1, L)` int64."""
        columns = [[text], *([[""]] * (len(self._text_columns) - 1))]
        return torch.from_numpy(token_ids(self.tokenizer, *columns, max_length=self.config.max_length))

    def _texts(self, rows: datasets.Dataset) -> list[list[str]]:
        """The texts, and those of the second column if there is one."""
        found = []
        for column in self._text_columns:
            texts = rows.with_format("arrow")[:].column(column).to_pylist()
            (wrong,) = np.nonzero([not isinstance(text, str) for text in texts])
            if len(wrong):
                raise ValueError(
                    f"expected texts in column {column!r}, found {texts[wrong[0]]!r} in row {wrong[0]}; give "
                    f"{setting('task.text_column')}, or drop such rows"
                )
            found.append(texts)
        return found


def _check_network(tokenizer: PreTrainedTokenizerBase, network: PretrainedConfig) -> None:
    if network.pad_token_id != tokenizer.pad_token_id:
        raise ValueError(
            f"expected a base model that pads with the tokenizer's token {tokenizer.pad_token_id}, found "
            f"{network.pad_token_id}; set pad_token_id in kwargs.config of the base model"
        )
    if network.vocab_size < len(tokenizer):
        raise ValueError(
            f"expected a base model for the {len(tokenizer)} tokens of the tokenizer, found vocab_size "
            f"{network.vocab_size}; change kwargs.config of the base model or {setting('task.vocab_size')}"
        )


def make_word_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the most frequent words of some texts, lower case and without accents.

    The same texts give the same tokenizer: words of equal frequency are in alphabetical order. Of its `vocab_size`
    tokens four are special: `[CLS] text [SEP]`, or `[CLS] text [SEP] other text [SEP]`.
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
    """A tokenizer of a folder or of the Hub, with a padding token, else `ValueError`; its code is never executed."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(package_path(name))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected a tokenizer in a folder or on the Hub, found none under {name!r} "
            f"({str(error).splitlines()[0]}); correct {setting('task.tokenizer')}, or set it to words"
        ) from error
    if tokenizer.pad_token_id is None:
        raise ValueError(f"expected a tokenizer with a padding token, found none in {name!r}; name another one")
    return tokenizer


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
