"""What a pipeline's conditions are, and how its denoiser is given them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from ..conditions import ConditionSpec
from ..text_encoder import TextEncoder
from .partial_conditions import PartialConditions
from .precision import Float32Module

# Sentences → embeddings (n, size).
Embed = Callable[[list[str]], torch.Tensor]


class ConditionEncoder(Float32Module, ModelMixin, ConfigMixin):
    r"""Maps conditions to the `class_labels` `(B, size)` of a denoiser with `class_embed_type="projection"`.

    Classes and labels become -1 and 1; metrics, texts and vectors are standardised by the mean and the standard
    deviation of every number over the training rows, see [`~ConditionEncoder.fit`]; a number that was the same in all
    of them becomes its difference to that. It is float32 whatever the pipeline is cast to.

    Parameters: those of [`ConditionSpec`], and what else `condition.json` has: `ConditionEncoder(**spec.to_dict())`.
    With `partial`, something may be left open, and class labels are those of [`PartialConditions`] `(B, 2q)`.
    """

    _keep_in_fp32_modules = ["mean", "deviation"]  # noqa: RUF012 - diffusers' declaration

    @register_to_config
    def __init__(
        self,
        kind: str,
        size: int,
        names: Sequence[str] = (),
        encoder: str | None = None,
        encoding: str | None = None,
        null: str = "learned",
        schema: int = 1,
        parts: Sequence[Mapping[str, Any]] = (),
        partial: bool = False,
    ):
        super().__init__()
        self.spec = ConditionSpec(kind, size, tuple(names), encoder, tuple(map(ConditionSpec.from_dict, parts)))
        self.partial = PartialConditions(self.spec) if partial else None
        self._is_choice = torch.zeros(self.partial.size if partial else size, dtype=torch.bool)
        for part, place in self.spec.placed:
            self._is_choice[place] = part.is_choice
        self.register_buffer("mean", torch.where(self._is_choice, 0.5, 0.0))
        self.register_buffer("deviation", torch.where(self._is_choice, 0.5, 1.0))

    @property
    def embed_size(self) -> int:
        """Numbers that the denoiser is given."""
        return 2 * self.partial.size if self.partial else self.spec.size

    @property
    def form(self) -> str:
        """A condition as JSON, without what it says."""
        return f"{{{', '.join(f'{part.kind!r}: …' for part, _ in self.spec.placed)}}}".replace("'", '"')

    @torch.no_grad()
    def fit(self, conditions: torch.Tensor) -> None:
        """Take over mean and standard deviation of the conditions `(K, size)` of the training rows."""
        rows = (self.partial.complete(conditions) if self.partial else conditions).double()
        is_choice = self._is_choice.to(rows.device)
        deviation = torch.where((rows == rows[0]).all(0), 1.0, rows.std(0, correction=0))
        self.mean.copy_(torch.where(is_choice, 0.5, rows.mean(0)))
        self.deviation.copy_(torch.where(is_choice, 0.5, deviation))

    def forward(self, conditions: torch.Tensor) -> torch.Tensor:
        """Class labels of conditions `(B, size)` as a parameter dataset has them, or of queries `(B, q)`."""
        if self.partial and conditions.shape[1] == self.spec.size < self.partial.size:
            conditions = self.partial.complete(conditions)
        labels = (conditions.to(self.mean) - self.mean) / self.deviation
        return torch.cat([labels.nan_to_num(0.0), (~labels.isnan()).to(labels)], 1) if self.partial else labels

    @torch.no_grad()
    def encode(
        self, conditions: Sequence[Mapping[str, Any]] | torch.Tensor, embed: Embed | None = None
    ) -> torch.Tensor:
        """What the denoiser is given `(B, size)`, float32.

        Args:
            conditions (`Sequence[Mapping]` or `torch.Tensor` of shape `(B, size)`): Each as `{kind: value}`, such as
                `{"classes": ["cat", "dog"]}`, with a value as [`ConditionSpec.values`] takes it, of a composed one
                with all parts; with `partial` what [`PartialConditions.values`] takes. Or their numbers as a parameter
                dataset has them.
            embed (`Callable`, *optional*): Maps a list of sentences, as which texts may be given, to embeddings
                `(n, size)`; the [`TextEncoder`] of the name `spec.encoder` by default.

        Raises:
            ValueError: a condition is of another kind, names what is unknown, is empty or not finite, or is a sentence
                that nothing embeds.
        """
        if isinstance(conditions, torch.Tensor):
            rows = [self.spec.check(row) for row in conditions.tolist()]
        elif self.partial:
            rows = [self.partial.values(self._checked(condition)) for condition in conditions]
        else:
            rows = [self.spec.values(value) for value in self._embedded([*map(self._value, conditions)], embed)]
        return self(torch.tensor(rows, device=self.mean.device))

    def example(self) -> dict[str, Any] | None:
        """A condition to begin with, of metrics their means while training; `None` where they have no words."""
        found: dict[str, Any] = {}
        for spec, place in self.spec.placed:
            if spec.kind == "text" and spec.encoder is not None:
                found["text"] = "a sentence"
            elif spec.kind in ("text", "vector"):
                return None
            elif spec.kind == "metric":
                found["metric"] = spec.describe([float(f"{mean:.3g}") for mean in self.mean[place].tolist()])
            else:
                found[spec.kind] = [*spec.names[:2]] if spec.kind == "classes" else spec.names[0]
        return found

    def describe(self, condition: Mapping[str, Any]) -> dict[str, Any]:
        """A condition as JSON: classes and labels by their names, sentences as they are; `ValueError` for none."""
        if self.partial:
            return self.partial.describe(self._checked(condition))
        value = self._value(condition)
        if self.spec.parts:
            return self.spec.describe(self.spec.values(value))
        if isinstance(value, str) and self.spec.kind == "text":
            return {self.spec.kind: value}
        return {self.spec.kind: self.spec.describe(self.spec.values(value))}

    def _embedded(self, values: list[Any], embed: Embed | None) -> list[Any]:
        """Values of conditions, with embeddings in the place of sentences."""
        sentences = [value for value in values if isinstance(value, str)]
        if self.spec.kind != "text" or not sentences:
            return values
        if embed is None and self.spec.encoder is not None:
            embed = self._text_encoder
        if embed is None:
            raise ValueError(
                f"nothing here embeds the sentence {sentences[0]!r:.80}: the pipeline does not say how its own were; "
                f"give the {self.spec.size} numbers of its embedding, or "
                "condition_embeds=pipe.condition_encoder.encode([…], embed=…)."
            )
        embeddings = iter(torch.as_tensor(embed(sentences)).tolist())
        return [next(embeddings) if isinstance(value, str) else value for value in values]

    @functools.cached_property
    def _text_encoder(self) -> TextEncoder:
        return TextEncoder(self.spec.encoder)

    def _value(self, condition: Any) -> Any:
        """What a condition `{kind: value}` says, of a composed one all of it."""
        self._checked(condition)
        return condition if self.spec.parts else condition[self.spec.kind]

    def _checked(self, condition: Any) -> Mapping[str, Any]:
        """A condition that says something of every part, or with `partial` of one or more."""
        kinds = {part.kind for part, _ in self.spec.placed}
        found = set(condition) if isinstance(condition, Mapping) else set()
        if not found or found - kinds or (not self.partial and found != kinds):
            left_out = (
                " Something can be left open where diffusion.partial_conditions was set." if self.spec.parts else ""
            )
            raise ValueError(
                f"expected a condition as {self.form} of {self.spec.summary}, found {condition!r:.200}."
                + ("" if self.partial else left_out)
            )
        return condition
