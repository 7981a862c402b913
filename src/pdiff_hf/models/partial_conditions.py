"""Conditions of which something is left open: as numbers, and while training."""

import itertools
from collections.abc import Mapping
from typing import Any

import torch

from ..conditions import KINDS_OF_PARTS, ConditionSpec

# What a subset of classes of which not all is said may say.
OF_CLASSES = ("include", "exclude", "size")


class PartialConditions:
    """How conditions of which something is left open are written as queries `(q,)`, NaN where it is.

    A query has the numbers of the condition, and after them of a subset of classes how many these are, which may be
    known where the classes are not. As class labels `(2q,)` it is the standardised numbers, 0 for those left open, and
    after them 1 for every number that is known.

    Args:
        spec ([`ConditionSpec`]): What complete conditions are.

    Raises:
        ValueError: they are sentences, of which nothing can be left open.
    """

    def __init__(self, spec: ConditionSpec):
        if any(part.kind not in KINDS_OF_PARTS for part, _ in spec.placed):
            raise ValueError(f"expected conditions of which parts can be left open, found {spec.summary}.")
        self.spec = spec
        self._classes = spec.part("classes")
        self.size = spec.size + (self._classes is not None)

    def complete(self, conditions: torch.Tensor) -> torch.Tensor:
        """Queries `(B, q)` of conditions `(B, size)` of which all is said."""
        if self._classes is None:
            return conditions
        return torch.cat([conditions, conditions[:, self._classes[1]].sum(1, keepdim=True)], 1)

    def values(self, condition: Mapping[str, Any]) -> list[float]:
        """The numbers `(q,)` of a condition.

        Args:
            condition (`Mapping`): By their kinds what is known of the parts. Of `classes` a list, which is then all of
                them, or `{"include": […], "exclude": […], "size": n}`, each where it is known; of `metric` some of
                the numbers; of `label` and `vector` what [`ConditionSpec.values`] takes.

        Raises:
            ValueError: nothing is said, a part is of another kind or none of its kind, or no subset can be so.
        """
        unknown = set(condition) - {part.kind for part, _ in self.spec.placed}
        if unknown or not condition:
            raise ValueError(
                f"expected what is known of {self.spec.summary}, found {min(map(str, unknown), default='nothing')!r}; "
                "guidance_scale=0 leaves the whole condition out."
            )
        found, size = [], []
        for part, _ in self.spec.placed:
            given = condition.get(part.kind)
            if part.kind == "classes":
                own, number = self._subset(part, given)
                size = [number]
            elif given is None:
                own = [float("nan")] * part.size
            elif part.kind == "metric" and isinstance(given, Mapping) and given.keys() < {*part.names}:
                known = ConditionSpec.named("metric", list(given)).values(given) if given else []
                known = dict(zip(given, known, strict=True))
                own = [known.get(name, float("nan")) for name in part.names]
            else:
                own = part.values(given)
            found += own
        return found + size

    def describe(self, condition: Mapping[str, Any]) -> dict[str, Any]:
        """A condition as JSON, classes and labels by their names; `ValueError` for none."""
        values, found = self.values(condition), {}
        for part, place in self.spec.placed:
            own = values[place]
            if part.kind not in condition:
                continue
            if not any(value != value for value in own):
                found[part.kind] = part.describe(own)
            elif part.kind == "metric":
                found[part.kind] = {name: value for name, value in zip(part.names, own, strict=True) if value == value}
            else:
                named = {key: [n for n, v in zip(part.names, own, strict=True) if v == bit] for key, bit in _BITS}
                size = {} if values[-1] != values[-1] else {"size": int(values[-1])}
                found[part.kind] = {key: names for key, names in named.items() if names} | size
        return found

    def hide(self, labels: torch.Tensor, noise: torch.Tensor, share: float) -> torch.Tensor:
        """Class labels `(B, 2q)` of which in a `share` of the rows something is left open.

        Of every part, a third of these rows keeps all, a third nothing, and a third of classes and metrics some, each
        of them with the same chance, which is drawn for the row. How many classes there are is known where all are,
        and in half of the others.

        Args:
            labels (`torch.Tensor` of shape `(B, 2q)`): Of complete conditions.
            noise (`torch.Tensor` of shape `(B, q + parts + 1)`): Standard normal.
            share (`float`): Of the rows.
        """
        uniform = torch.special.ndtr(noise)
        numbers, of_parts, of_row = uniform.split([self.size, len(self.spec.placed), 1], 1)
        known = torch.ones_like(numbers, dtype=torch.bool)
        for (part, place), drawn in zip(self.spec.placed, of_parts.T, strict=True):
            kept = (3 * drawn - 1)[:, None]
            if part.kind in ("classes", "metric"):
                known[:, place] = numbers[:, place] < kept
            else:
                known[:, place] = kept > 0.5
        if self._classes is not None:
            known[:, -1] = (numbers[:, -1] < 0.5) | known[:, self._classes[1]].all(1)
        known |= of_row >= share
        return labels * known.repeat(1, 2)

    def differ(self, labels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Whether complete conditions are others than what is known: `(B, 2q)`, `(K, 2q)` → `(B, K)`."""
        found = torch.zeros(len(labels), len(rows), dtype=torch.bool, device=labels.device)
        for value, known, own in zip(*(part.T for part in labels.chunk(2, 1)), rows.T[: self.size], strict=True):
            found |= (value[:, None] != own) & known.bool()[:, None]
        return found

    @property
    def num_noise(self) -> int:
        """Values of noise that [`~PartialConditions.hide`] takes for a row."""
        return self.size + len(self.spec.placed) + 1

    @staticmethod
    def _subset(part: ConditionSpec, given: Any) -> tuple[list[float], float]:
        """Bits of the classes and their number, NaN where it is left open."""
        if given is not None and not isinstance(given, Mapping):
            bits = part.values(given)
            return bits, sum(bits)
        given = given or {}
        if set(given) - {*OF_CLASSES}:
            raise ValueError(f"condition of classes: expected {', '.join(OF_CLASSES)}, found {given!r:.200}.")
        bits, size = [float("nan")] * part.size, given.get("size")
        for key, bit in _BITS:
            if given.get(key):
                for place in itertools.compress(range(part.size), part.values(given[key])):
                    if bits[place] == 1 - bit:
                        raise ValueError(
                            f"condition of classes: expected {part.names[place]} to be in it or not, found both."
                        )
                    bits[place] = bit
        least, most = max(1, bits.count(1.0)), part.size - bits.count(0.0)
        if most < 1 or (size is not None and (type(size) is not int or not least <= size <= most)):
            raise ValueError(
                f"condition of classes: expected a subset of {least} to {most} classes, found {given!r:.200}."
            )
        if size is None and bits.count(1.0) == most:
            size = most
        return bits, float("nan") if size is None else float(size)


_BITS = (("include", 1.0), ("exclude", 0.0))
