"""What a network was trained for, as numbers: the condition of a row of a parameter dataset, and of a pipeline."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

from .files import errors_of, read_object, write_json

Kind = Literal["classes", "label", "metric", "text", "vector", "composed"]
CONDITION_FILE = "condition.json"
# Of one kind, and of several parts.
SCHEMA, SCHEMA_OF_PARTS = 1, 2
# Of float32, in which conditions are stored.
MAX_VALUE = 3.4028234663852886e38
# What the numbers of a kind are.
ENCODINGS = {
    "classes": "multi_hot",
    "label": "one_hot",
    "metric": "raw",
    "text": "embedding",
    "vector": "raw",
    "composed": "parts",
}
# A sentence has a column of its own.
KINDS_OF_PARTS = ("classes", "label", "metric", "vector")


@dataclass(frozen=True)
class ConditionSpec:
    """How the conditions of a collection are written as vectors `(size,)`: the content of `condition.json`.

    Args:
        kind (`str`): `classes`, a subset of named classes; `label`, one of some names; `metric`, named numbers such as
            a validation accuracy, as they are; `text`, a sentence by its embedding; `vector`, numbers of any meaning;
            `composed`, several of these at once, one after the other.
        size (`int`): Numbers of a condition.
        names (`tuple[str, ...]`, *optional*): Of the classes, labels or metrics, in the order of the numbers.
        encoder (`str`, *optional*): Of texts: the sentence encoder whose embeddings these are, such as a name on the
            Hub.
        parts (`tuple[ConditionSpec, ...]`, *optional*): Of a composed one: two or more of different kinds.

    Raises:
        ValueError: parts or names that do not fit the kind and the size.
    """

    kind: Kind
    size: int
    names: tuple[str, ...] = ()
    encoder: str | None = None
    parts: tuple[ConditionSpec, ...] = ()

    def __post_init__(self):
        if self.kind not in get_args(Kind):
            raise ValueError(f"expected a condition of kind {', '.join(get_args(Kind))}, found {self.kind!r}.")
        kinds = [part.kind for part in self.parts]
        is_composed = self.kind == "composed"
        if is_composed and (len({*kinds} & {*KINDS_OF_PARTS}) < max(2, len(kinds))):
            raise ValueError(
                f"expected two or more parts of a condition, of different kinds among {', '.join(KINDS_OF_PARTS)}; "
                f"found {', '.join(kinds) or 'none'}."
            )
        if (kinds and not is_composed) or (is_composed and self.size != sum(part.size for part in self.parts)):
            raise ValueError(
                f"expected the numbers of all parts of a composed condition, found {self.size} of {kinds}."
            )
        wanted = self.size if self.kind in ("classes", "label", "metric") else 0
        if self.size < 1 or len(self.names) != wanted or len(set(self.names)) != len(self.names):
            raise ValueError(
                f"expected {wanted} different names of a condition of kind {self.kind} with {self.size} numbers, "
                f"found {len(self.names)}: {', '.join(self.names)!s:.200}."
            )
        if self.encoder is not None and (self.kind != "text" or not isinstance(self.encoder, str)):
            raise ValueError(f"expected the name of an encoder of texts alone, found {self.encoder!r:.200}.")

    @property
    def summary(self) -> str:
        """What they are in a few words."""
        if self.parts:
            return " and ".join(part.summary for part in self.parts)
        if self.names:
            what = ", ".join(self.names[:12]) + (", …" if self.size > 12 else "")
        else:
            what = f"{self.size} number{'s' if self.size > 1 else ''}"
        return f"{self.kind} ({what:.300}{f' of {self.encoder}' if self.encoder else ''})"

    @classmethod
    def named(cls, kind: Kind, names: Sequence[str]) -> ConditionSpec:
        """Of classes, labels or metrics."""
        return cls(kind, len(names), tuple(map(str, names)))

    @classmethod
    def composed(cls, *parts: ConditionSpec) -> ConditionSpec:
        """Of several at once, such as classes and metrics."""
        return cls("composed", sum(part.size for part in parts), parts=parts)

    @property
    def placed(self) -> list[tuple[ConditionSpec, slice]]:
        """Its parts, and which of the numbers are theirs; of one kind, itself."""
        ends = list(itertools.accumulate((part.size for part in self.parts), initial=0))
        places = itertools.starmap(slice, itertools.pairwise(ends))
        return list(zip(self.parts, places, strict=True)) or [(self, slice(0, self.size))]

    def part(self, kind: Kind) -> tuple[ConditionSpec, slice] | None:
        """That of a kind, and which of the numbers are its; `None` where there is none."""
        return next(((part, place) for part, place in self.placed if part.kind == kind), None)

    @property
    def is_choice(self) -> bool:
        """Whether its numbers are ones for what is meant and zeros for the rest."""
        return self.kind in ("classes", "label")

    def values(self, condition: Any) -> list[float]:
        """The numbers of a condition.

        Args:
            condition: Of `classes` a sequence of their names or indices; of `label` a name or index; of `metric` a
                mapping of all names to numbers; of `text` and `vector` a sequence of `size` numbers; of a composed
                one a mapping of the kinds of all parts to theirs. Of any kind, a tensor or an array of floats
                `(size,)` is the numbers themselves.

        Raises:
            ValueError: it is none of this kind, names what is unknown, is an empty subset, or has a number that is
                not finite.
        """
        if hasattr(condition, "tolist"):
            is_numbers, condition = "float" in str(condition.dtype), condition.tolist()
            if is_numbers:
                return self.check(condition)
        if self.parts:
            kinds = [part.kind for part in self.parts]
            if not isinstance(condition, Mapping) or set(condition) != set(kinds):
                raise self._error(f"an object of {' and '.join(kinds)}", condition)
            return [number for part in self.parts for number in part.values(condition[part.kind])]
        if self.kind == "classes":
            if not _is_sequence(condition):
                raise self._error("a list of classes", condition)
            places = [self._place(name) for name in condition]
            if not places or len(set(places)) != len(places):
                raise self._error("one class or more, each once", condition)
            return [float(place in places) for place in range(self.size)]
        if self.kind == "label":
            place = self._place(condition)
            return [float(place == other) for other in range(self.size)]
        if self.kind == "metric":
            if not isinstance(condition, Mapping) or set(condition) != set(self.names):
                raise self._error(f"a number for each of {', '.join(self.names)}", condition)
            condition = [condition[name] for name in self.names]
        return self.check(condition)

    def check(self, values: Any) -> list[float]:
        """The numbers of a condition as they are stored; `ValueError` where they cannot be those of one."""
        if not _is_sequence(values) or len(values) != self.size:
            raise self._error(f"{self.size} numbers", values)
        if any(isinstance(value, str) for value in values):
            raise self._error(f"{self.size} numbers", values)
        try:
            found = [float(value) for value in values]
        except (TypeError, ValueError) as error:
            raise self._error(f"{self.size} numbers", values) from error
        # A NaN is not below anything.
        if not all(abs(value) <= MAX_VALUE for value in found):
            raise self._error("finite numbers that float32 holds", values)
        if self.parts:
            return [number for part, place in self.placed for number in part.check(found[place])]
        if self.kind in ("classes", "label") and (
            not set(found) <= {0.0, 1.0} or not sum(found) or (self.kind == "label" and sum(found) != 1)
        ):
            raise self._error("ones for what is meant and zeros for the rest", values)
        return found

    def describe(self, values: Sequence[float]) -> Any:
        """The condition that numbers stand for, as [`~ConditionSpec.values`] takes it."""
        if self.parts:
            return {part.kind: part.describe(values[place]) for part, place in self.placed}
        if self.kind == "metric":
            return dict(zip(self.names, map(float, values), strict=True))
        if self.kind not in ("classes", "label"):
            return [float(value) for value in values]
        named = [name for name, value in zip(self.names, values, strict=True) if value]
        return named if self.kind == "classes" else named[0]

    def _place(self, name: Any) -> int:
        if isinstance(name, str) and name in self.names:
            return self.names.index(name)
        if isinstance(name, Integral) and not isinstance(name, bool) and 0 <= name < self.size:
            return int(name)
        raise self._error(f"names among {', '.join(self.names)!s:.300}, or indices below {self.size}", name)

    def _error(self, expected: str, found: Any) -> ValueError:
        return ValueError(f"condition of kind {self.kind}: expected {expected}, found {found!r:.200}.")

    def to_dict(self) -> dict[str, Any]:
        """What `condition.json` holds."""
        parts = {"parts": [part.to_dict() for part in self.parts]} if self.parts else {}
        return {
            "schema": SCHEMA_OF_PARTS if self.parts else SCHEMA,
            "kind": self.kind,
            "size": self.size,
            "names": list(self.names),
            "encoding": ENCODINGS[self.kind],
            "encoder": self.encoder,
            "null": "learned",
            **parts,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ConditionSpec:
        """That of [`~ConditionSpec.to_dict`]; `ValueError` for anything else."""
        schema, kind, size, encoding = (values.get(key) for key in ("schema", "kind", "size", "encoding"))
        names, encoder = values.get("names", []), values.get("encoder")
        parts = values.get("parts", [])
        if not isinstance(parts, (list, tuple)) or not all(isinstance(part, Mapping) for part in parts):
            raise ValueError(f"expected the parts of a condition, found {parts!r:.200}.")
        expected = SCHEMA_OF_PARTS if kind == "composed" else SCHEMA
        if schema != expected or kind not in [*ENCODINGS] or encoding != ENCODINGS[kind] or type(size) is not int:
            raise ValueError(f"expected schema {expected}, kind, size and encoding, found {values!r:.200}.")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"expected names of a condition, found {names!r:.200}.")
        return cls(kind, size, tuple(names), encoder, tuple(map(cls.from_dict, parts)))

    def save(self, folder: Path) -> None:
        """Write `condition.json`."""
        write_json(folder / CONDITION_FILE, self.to_dict())

    @classmethod
    def read(cls, folder: Path) -> ConditionSpec | None:
        """That of a folder, `None` where it has none; `ValueError` names a damaged file."""
        file = folder / CONDITION_FILE
        if not file.is_file():
            return None
        values = read_object(file)
        with errors_of(file):
            return cls.from_dict(values)


def conditions_text(described: Mapping[str, Any]) -> str:
    """In words what `stats.json` says of the conditions of rows."""
    spec, number = ConditionSpec.from_dict(described["spec"]), described["num_conditions"]
    least, most = (described["rows_per_condition"][key] for key in ("min", "max"))
    rows = f"{least} to {most} rows" if least < most else f"{most} row{'s' if most > 1 else ''}"
    return f"{spec.summary}; {number} different, {rows} of each"


def _is_sequence(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, (str, Mapping))
