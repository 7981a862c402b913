"""Which part of a file is the network: found by its tensors, at any depth and under any prefix they share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...hub.snapshot import short_name
from ...wrapped import COUNTER, plain_name
from .foreign import foreign_tensor
from .placeholder import Placeholder, state_of_module

# Names of the weights that a script has averaged beside those that it trains.
AVERAGED = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?|average_model|shadow|teacher|target)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class FileTensors:
    """All tensors of a file by dotted names: keys and places of what they lie in, and their own.

    Names that only wrappers give are left out of them.

    Args:
        tensors (`dict[str, torch.Tensor]`): By dotted name.
        owners (`dict[str, str]`): By dotted name, the dotted name of the mapping that holds the tensor.
        unread (`dict[str, str]`): By the dotted name of a tensor that is none of numbers in memory, what it is.
    """

    tensors: dict[str, torch.Tensor]
    owners: dict[str, str]
    unread: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, expected: Collection[str]) -> FileTensors:
        """Those of what a file holds: mappings and sequences in one another, with tensors among other values.

        `expected` are the names of the network: `module`, which wrappers give too, stays where it is one of theirs.
        """
        left_out = () if any("module" in name.split(".") for name in expected) else ("module",)
        tensors, owners, unread = {}, {}, {}
        for names, tensor in _walk(value, (), set()):
            name = _dotted(names, left_out)
            if isinstance(tensor, Placeholder):
                unread[name] = foreign_tensor(tensor)
            elif names and names[-1].rpartition(".")[2] != COUNTER and name not in tensors:
                tensors[name], owners[name] = tensor, _dotted(names[:-1], left_out)
        return cls(tensors, owners, unread)

    def under(self, key: str) -> FileTensors:
        """Those whose names begin with `key`, without it; none where there are none."""
        # What wrappers give may have been left out of the names.
        for left_out in ((), ("module",)):
            prefix = _prefix(_dotted([key], left_out))
            found = {name: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}
            if found:
                break
        return FileTensors(
            {name.removeprefix(prefix): tensor for name, tensor in found.items()},
            {name.removeprefix(prefix): self.owners[name] for name in found},
            {name.removeprefix(prefix): what for name, what in self.unread.items() if name.startswith(prefix)},
        )

    def prefixes(self, expected: Collection[str]) -> Counter[str]:
        """Every prefix with which names of the file are expected ones, and of how many they are."""
        counts: Counter[str] = Counter()
        for name in self.tensors:
            start = 0
            while True:
                if name[start:] in expected:
                    counts[name[:start]] += 1
                start = name.find(".", start) + 1
                if not start:
                    break
        return counts

    def entry(self, prefix: str) -> tuple[dict[str, torch.Tensor], list[str]]:
        """The tensors under a prefix, by their names without it, and the names of those beside it.

        Beside it is what the same mapping holds; another one, such as an optimiser's state, is not of the network.
        """
        inside = {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}
        owners = {self.owners[name] for name in self.tensors if name.startswith(prefix)}
        beside = [n for n in self.tensors if not n.startswith(prefix) and self.owners[n] in owners]
        return inside, beside

    def largest(self) -> dict[str, torch.Tensor]:
        """The tensors of the mapping that holds most of them, by their dotted names in it."""
        if not self.tensors:
            return {}
        owner = Counter(self.owners.values()).most_common(1)[0][0]
        return {n.removeprefix(_prefix(owner)): t for n, t in self.tensors.items() if self.owners[n] == owner}

    def keys(self) -> list[str]:
        """Dotted names of the mappings that hold tensors, `""` for the file itself."""
        return list(dict.fromkeys(self.owners.values()))


def _dotted(names: Sequence[str], left_out: Collection[str]) -> str:
    parts = (part for name in names for part in plain_name(name).split("."))
    return ".".join(part for part in parts if part and part not in left_out)


def _prefix(name: str) -> str:
    return f"{name}." if name else ""


def _walk(value: Any, names: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Placeholder) and (state := state_of_module(value)) is not None:
        value = state
    if isinstance(value, torch.Tensor) or foreign_tensor(value):
        yield names, value
        return
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    elif isinstance(value, Placeholder):
        items = [("", part) for part in (value.entries, value.state, value.elements)]
    else:
        return
    # What a file holds may contain itself.
    if id(value) not in seen:
        seen.add(id(value))
        for key, inner in items:
            yield from _walk(inner, (*names, str(key)), seen)


def choose(candidates: Mapping[str, Mapping[str, torch.Tensor]]) -> tuple[str, list[str]]:
    """Of entries that all fit the network the one to take, by its prefix, and those that were passed over.

    Of the same tensors under several names the first is taken; of weights and their average, the weights.

    Raises:
        ValueError: nobody knows which; the entries are named.
    """
    distinct: dict[str, Mapping[str, torch.Tensor]] = {}
    for prefix, state in candidates.items():
        if not any(_equal(state, other) for other in distinct.values()):
            distinct[prefix] = state
    if len(distinct) == 1:
        return next(iter(distinct)), []
    plain = [prefix for prefix in distinct if not AVERAGED.search(prefix)]
    if len(plain) != 1:
        raise ValueError(f"{len(distinct)} entries fit the network: {listed(distinct)}")
    return plain[0], [prefix for prefix in distinct if prefix != plain[0]]


def listed(prefixes: Sequence[str] | Mapping[str, Any]) -> str:
    """Entries by the keys that name them."""
    names = [repr(short_name(prefix.removesuffix("."))) if prefix else "the file itself" for prefix in prefixes]
    return " and ".join(names[:4]) + (" and more" if len(names) > 4 else "")


def _equal(state: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return state.keys() == other.keys() and all(
        state[name].dtype == other[name].dtype and torch.equal(state[name], other[name]) for name in state
    )
