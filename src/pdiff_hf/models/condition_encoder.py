"""What a pipeline's conditions are, and how its denoiser is given them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from ..conditions import ConditionSpec
from ..text_encoder import TextEncoder
from .precision import Float32Module

# Sentences → embeddings (n, size).
Embed = Callable[[list[str]], torch.Tensor]


class ConditionEncoder(Float32Module, ModelMixin, ConfigMixin):
    r"""Maps conditions to the `class_labels` `(B, size)` of a denoiser with `class_embed_type="projection"`.

    Classes and labels become -1 and 1; metrics, texts and vectors are standardised by the mean and the standard
    deviation of every number over the training rows, see [`~ConditionEncoder.fit`]; a number that was the same in all
    of them becomes its difference to that. It is float32 whatever the pipeline is cast to.

    Parameters: those of [`ConditionSpec`], and what else `condition.json` has: `ConditionEncoder(**spec.to_dict())`.
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
    ):
        super().__init__()
        self.spec = ConditionSpec(kind, size, tuple(names), encoder)
        self.register_buffer("mean", torch.full((size,), 0.5 if self.spec.is_choice else 0.0))
        self.register_buffer("deviation", torch.full((size,), 0.5 if self.spec.is_choice else 1.0))

    @torch.no_grad()
    def fit(self, conditions: torch.Tensor) -> None:
        """Take over mean and standard deviation of the conditions `(K, size)` of the training rows."""
        if self.spec.is_choice:
            return
        rows = conditions.double()
        deviation = rows.std(0, correction=0)
        self.mean.copy_(rows.mean(0))
        self.deviation.copy_(torch.where((rows == rows[0]).all(0), 1.0, deviation))

    def forward(self, conditions: torch.Tensor) -> torch.Tensor:
        """Standardise conditions `(B, size)` as a parameter dataset has them."""
        return (conditions.to(self.mean) - self.mean) / self.deviation

    @torch.no_grad()
    def encode(
        self, conditions: Sequence[Mapping[str, Any]] | torch.Tensor, embed: Embed | None = None
    ) -> torch.Tensor:
        """What the denoiser is given `(B, size)`, float32.

        Args:
            conditions (`Sequence[Mapping]` or `torch.Tensor` of shape `(B, size)`): Each as `{kind: value}`, such as
                `{"classes": ["cat", "dog"]}`, with a value as [`ConditionSpec.values`] takes it; or their numbers as a
                parameter dataset has them.
            embed (`Callable`, *optional*): Maps a list of sentences, as which texts may be given, to embeddings
                `(n, size)`; the [`TextEncoder`] of the name `spec.encoder` by default.

        Raises:
            ValueError: a condition is of another kind, names what is unknown, is empty or not finite, or is a sentence
                that nothing embeds.
        """
        if isinstance(conditions, torch.Tensor):
            rows = [self.spec.check(row) for row in conditions.tolist()]
        else:
            rows = [self.spec.values(value) for value in self._embedded([*map(self._value, conditions)], embed)]
        return self(torch.tensor(rows, device=self.mean.device))

    def example(self) -> dict[str, Any] | None:
        """A condition to begin with, of metrics their means while training; `None` where they have no words."""
        spec = self.spec
        if spec.kind == "text" and spec.encoder is not None:
            return {"text": "a sentence"}
        if spec.kind in ("text", "vector"):
            return None
        if spec.kind == "metric":
            return {"metric": spec.describe([float(f"{mean:.3g}") for mean in self.mean.tolist()])}
        return {spec.kind: [*spec.names[:2]] if spec.kind == "classes" else spec.names[0]}

    def describe(self, condition: Mapping[str, Any]) -> dict[str, Any]:
        """A condition as JSON: classes and labels by their names, sentences as they are; `ValueError` for none."""
        value = self._value(condition)
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
        """What a condition `{kind: value}` says."""
        kind = self.spec.kind
        if not isinstance(condition, Mapping) or list(condition) != [kind]:
            raise ValueError(
                f'expected a condition as {{"{kind}": …}} of {self.spec.summary}, found {condition!r:.200}.'
            )
        return condition[kind]
