"""Sentences as vectors, by an encoder of the user's choice."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .own_code import package_path

# Tokens of a sentence, as many as BERT and its kin take.
MAX_LENGTH = 512


class TextEncoder:
    """A model of transformers as a sentence encoder: the mean of its last hidden states over the tokens of a sentence.

    That is how most models of sentence-transformers pool; one that pools in another way is handed in as a callable of
    one's own wherever this one may be, such as `SentenceTransformer(…).encode`.
    Source: Reimers, Gurevych, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks" (2019), section 3.

    Args:
        name (`str`): A folder, `user/name` on the Hub, or `package:NAME/path`, a folder of an installed package; code
            that it brings is never executed.
        batch_size (`int`, *optional*, defaults to 64): Sentences at a time.

    Raises:
        ValueError: there is no such encoder, or it has no tokenizer.
    """

    def __init__(self, name: str, batch_size: int = 64):
        from transformers import AutoModel, AutoTokenizer

        self.name, self.batch_size = name, batch_size
        place = package_path(name)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(place)
            self._model = AutoModel.from_pretrained(place).eval()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"expected a text encoder in a folder or on the Hub, found none under {name!r} "
                f"({str(error).splitlines()[0]}); name another one."
            ) from error
        if self._tokenizer.pad_token_id is None:
            raise ValueError(
                f"expected a text encoder with a padding token, found none in {name!r}; name another one."
            )

    @property
    def size(self) -> int:
        """Numbers of an embedding."""
        return self._model.config.hidden_size

    @torch.no_grad()
    def __call__(self, sentences: Sequence[str]) -> torch.Tensor:
        """The embeddings `(n, size)` float32 of `n` sentences; of long ones, the first 512 tokens."""
        length = min(self._tokenizer.model_max_length, MAX_LENGTH)
        found = [torch.empty(0, self.size)]
        for start in range(0, len(sentences), self.batch_size):
            batch = list(sentences[start : start + self.batch_size])
            tokens = self._tokenizer(batch, padding=True, truncation=True, max_length=length, return_tensors="pt")
            hidden = self._model(**tokens).last_hidden_state.float()
            mask = tokens["attention_mask"][..., None]
            found.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.cat(found)
