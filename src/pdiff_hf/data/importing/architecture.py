"""Network of imported checkpoints: its tensors in whatever a file holds, and the refusal of another network's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch

from ...base_model import BaseModel
from ...files import errors_of
from ...hub.snapshot import short_name, some_of
from ...layout import ParameterLayout
from ...wording import argument
from ...wrapped import own_buffers, own_modules, own_state
from .adapt import BATCH_COUNTER, nearest, told_arguments, with_arguments
from .converted import QUANTIZED, convert
from .entries import FileTensors, choose, listed
from .placeholder import Placeholder

# Share of the names that another network of the family has in common at least.
MIN_ALIKE = 0.25
# Left in state dicts by a profiler, beside the tensors of every module.
PROFILED = ("total_ops", "total_params")


class Architecture:
    """Finds the tensors of a network in what checkpoints hold, and refuses those of another one.

    Args:
        base_model ([`BaseModel`]): The network; of its own weights no use is made.
        key (`str`, *optional*): Dotted name of the entry of the files to take; by default the one that fits.

    Attributes:
        base_model ([`BaseModel`]): With the arguments that the first checkpoint has told.
        held (`set[str]`): Names of the tensors that the first checkpoint holds itself.

    Raises:
        ValueError: the network cannot be built.
    """

    def __init__(self, base_model: BaseModel, key: str | None = None):
        self._key, self._rest, self._notes = key, {}, {}
        self.held: set[str] = set()
        self._prefix: str | None = None
        self._take(base_model)

    def take_rest(self, value: Any, where: str) -> None:
        """Let checkpoints lack tensors, which they then have from a file of the whole network; as [`named`]."""
        # The entry is one of the checkpoints.
        key, self._key = self._key, None
        self._rest, self._prefix = self.named(value, where), None
        self._key, self.held = key, set()

    def _take(self, base_model: BaseModel) -> None:
        self.base_model = base_model
        # Constructors of networks do not check what they are given.
        kinds = (TypeError, KeyError, RuntimeError, ImportError, ZeroDivisionError, AttributeError)
        try:
            self._model = base_model.build()
        except (ValueError, *kinds) as error:
            # Our own messages say it already.
            if str(error).startswith("base model"):
                raise
            with errors_of(f"base model {base_model.name!r} cannot be built with its arguments", *kinds):
                raise
        state = own_state(self._model)
        self.buffers = set(own_buffers(self._model))
        self._modules = {name for name, _ in own_modules(self._model)}
        self._shapes = {name: tensor.shape for name, tensor in state.items()}
        self._dtypes = {name: tensor.dtype for name, tensor in state.items()}
        self._counters = {name: t.clone() for name, t in state.items() if name.rpartition(".")[2] == BATCH_COUNTER}
        # The first name of every tensor; tied ones have several.
        first: dict[int, str] = {}
        self._first_name = {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}

    @property
    def notes(self) -> list[str]:
        """What was decided about the files so far."""
        return list(self._notes)

    def layout(self, state: Mapping[str, torch.Tensor], select: str | Sequence[str], buffers: bool) -> ParameterLayout:
        """The selected tensors in the types of the first checkpoint; the network is let go."""
        model = self._model
        self._model = None
        for name, tensor in own_state(model).items():
            tensor.data = state[name]
        return ParameterLayout.from_model(model, select, buffers)

    def named(self, value: Any, where: str) -> dict[str, torch.Tensor]:
        """All tensors of a checkpoint by the network's names; tied ones are one tensor.

        The first checkpoint also tells arguments of the network that nobody gave, such as the number of classes.

        Args:
            value (`Any`): What its file holds: mappings and sequences in one another, with tensors in them.
            where (`str`): What messages call it.

        Raises:
            ValueError: no entry fits the network, or several do and nobody knows which; the first tensor that does not
                fit is named.
        """
        file = self._file(value, where)
        if self._model is not None and not self._complete(file):
            self._adapt(file)
        candidates = {prefix: file.entry(prefix)[0] for prefix in self._complete(file)}
        if not candidates:
            if self.base_model.library != "transformers":
                self._refuse(file, where)
            counts = file.prefixes(self._shapes)
            state = file.entry(max(counts, key=counts.get))[0] if counts else file.largest()
            return self._typed(convert(self.base_model, state, where), where)
        # As in the first checkpoint, where the same is there.
        prefix = self._prefix
        if prefix not in candidates:
            try:
                prefix, others = choose(candidates)
            except ValueError as error:
                first = listed([next(iter(candidates))])
                key = argument("key", first, first.strip("'"))
                raise ValueError(f"{where}: {error}; name one, as {key}.") from error
            if others:
                key = argument("key", listed(others[:1]), others[0].removesuffix("."))
                self.note(f"Entry {listed([prefix])} is taken; {listed(others)} fits too: {key}.")
        state, beside = file.entry(prefix)
        if self._prefix is None:
            self._prefix, self.held = prefix, state.keys() & self._shapes.keys()
        if extra := [*beside, *(prefix + name for name in state if name not in self._shapes)]:
            self.note(f"Tensors that the network does not have are left out: {some_of(extra)}.")
        return self._typed({**self._rest, **state}, where)

    def _file(self, value: Any, where: str) -> FileTensors:
        with errors_of(where):
            file = FileTensors.of(value, self._shapes)
        if not file.tensors and file.unread:
            name, what = next(iter(file.unread.items()))
            raise ValueError(f"{where}: tensor {short_name(name)!r}: expected a dense one, found it {what}.")
        if not file.tensors:
            found = repr(value) if isinstance(value, Placeholder) else "no tensor at all"
            found = "a tensor without a name" if isinstance(value, torch.Tensor) else found
            raise ValueError(f"{where}: expected a state dict, found {found}; save model.state_dict().")
        if self._key is None:
            return file
        under = file.under(self._key)
        if not under.tensors:
            found = some_of(key for key in file.keys() if key) if any(file.keys()) else "tensors alone"
            raise ValueError(f"{where}: expected an entry {self._key!r} with tensors, found {found}.")
        return under

    def _complete(self, file: FileTensors) -> list[str]:
        """The prefixes under which all of the network is, and nothing that makes it another."""
        needed = len(set(self._first_name.values()) - self._counters.keys())
        counts = file.prefixes(self._shapes)
        # Of a part, another one may have the same names and shapes.
        needed = max(counts.values(), default=0) if self._rest else needed
        return [prefix for prefix, count in counts.items() if count >= needed and self._problem(file, prefix) is None]

    def _problem(self, file: FileTensors, prefix: str) -> tuple[str, str] | None:
        """Kind, and first reason in words, why what is under a prefix is not the network."""
        state = file.entry(prefix)[0]
        found = {self._first_name[name] for name in state.keys() & self._shapes.keys()} | self._rest.keys()
        problem = None
        for name, shape in self._shapes.items():
            tensor = state.get(name)
            if tensor is None:
                if prefix + name in file.unread:
                    return "kind", f"{name!r}: expected a dense one, found it {file.unread[prefix + name]}"
                if self._first_name[name] not in found and name not in self._counters:
                    problem = problem or ("missing", f"{name!r}: it is missing")
            elif tensor.shape != shape:
                return "shape", f"{name!r}: expected shape {tuple(shape)}, found {tuple(tensor.shape)}"
            elif tensor.is_floating_point() != self._dtypes[name].is_floating_point:
                kind = "floating-point" if self._dtypes[name].is_floating_point else "integer"
                quantized = "; quantized networks cannot be imported" if tensor.dtype in QUANTIZED else ""
                return "kind", f"{name!r}: expected {kind} values, found {tensor.dtype}{quantized}"
        if foreign := [name for name in state if name not in self._shapes and self._is_foreign(name, state[name])]:
            return "foreign", f"{short_name(foreign[0])!r}, which the network does not have"
        return problem

    def _is_foreign(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether a tensor that the network does not have is a part of one of its modules, or one layer more.

        What lies beside the network, such as the weights of a loss, is not; nor are masks and indices.
        """
        parts = name.split(".")
        if parts[-1] in PROFILED or not tensor.is_floating_point():
            return False
        depth = next(d for d in range(len(parts) - 1, -1, -1) if ".".join(parts[:d]) in self._modules)
        if depth:
            return True
        return parts[0].isdecimal() and any(name.partition(".")[0].isdecimal() for name in self._shapes)

    def _adapt(self, file: FileTensors) -> None:
        """Give the network the arguments that the shapes tell, where it then has them."""
        for prefix, _ in file.prefixes(self._shapes).most_common(3):
            shapes = {name: tuple(tensor.shape) for name, tensor in file.entry(prefix)[0].items()}
            told = told_arguments(self.base_model, self._model, shapes)
            if not told:
                continue
            before = self.base_model
            try:
                self._take(with_arguments(before, told))
            except ValueError:
                self._take(before)
                continue
            if self._complete(file):
                text = ", ".join(f"{name}={value}" for name, value in told.items())
                return self.note(f"The network is {before.name} with {text}, as the shapes say.")
            self._take(before)

    def _typed(self, state: dict[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
        """By all names, tied ones as one tensor; double precision becomes single."""
        tied: dict[str, torch.Tensor] = {}
        for name in self._shapes.keys() & state.keys():
            tensor = state[name]
            if tensor.dtype == torch.float64 and self._dtypes[name] != torch.float64:
                self.note("Double precision is rounded to float32.")
                tensor = tensor.float()
            known = tied.setdefault(self._first_name[name], tensor)
            if known is not tensor and not torch.equal(known, tensor):
                raise ValueError(
                    f"{where}: tensor {name!r}: expected those of {self._first_name[name]!r}, which it is tied to."
                )
        return {name: tied.get(first, self._counters.get(name)) for name, first in self._first_name.items()}

    def _refuse(self, file: FileTensors, where: str) -> NoReturn:
        """Say how near the file comes to the network."""
        network, total, counts = self.base_model.name, len(self._shapes), file.prefixes(self._shapes)
        if all(part.isdecimal() for name in file.tensors for part in name.split(".")):
            raise ValueError(f"{where}: expected tensors by name, found a list of them; save model.state_dict().")
        if not counts:
            raise ValueError(
                f"{where}: none of the {total} tensors of {network}, such as {next(iter(self._shapes))!r}, is in it; "
                f"it has {some_of(file.tensors)} and belongs to another architecture."
            )
        wrong = [prefix for prefix in counts if self._problem(file, prefix)]
        prefix = max(wrong, key=lambda prefix: (self._num_fitting(file, prefix), counts[prefix]))
        kind, problem = self._problem(file, prefix)
        shapes = {name: tuple(tensor.shape) for name, tensor in file.entry(prefix)[0].items()}
        told = told_arguments(self.base_model, self._model, shapes, asked=False) if self._model else {}
        told = told if told and self._fits_with(told, file) else {}
        if kind == "shape" and told:
            advice = f". It is the same architecture with {', '.join(f'{n}={value}' for n, value in told.items())}"
        elif counts[prefix] > MIN_ALIKE * total and (found := nearest(self.base_model, shapes)):
            advice = f". Names and shapes are those of timm:{found}"
        elif kind == "missing":
            advice = (
                f". Where files hold a part of the network, give one of the rest: {argument('rest', 'PATH', 'FILE')}"
            )
        else:
            given = argument("kwargs") if self.base_model.library == "import" and kind == "shape" else ""
            advice = f"; it has other arguments ({given}), or" if given else ";"
            advice = "" if kind == "kind" else f"{advice} it belongs to another architecture"
        num = self._num_fitting(file, prefix)
        raise ValueError(
            f"{where}: {num} of {total} tensors fit {network}; the first that does not is {problem}{advice}."
        )

    def _fits_with(self, told: Mapping[str, int], file: FileTensors) -> bool:
        """Whether the network of further arguments is in a file."""
        try:
            other = Architecture(with_arguments(self.base_model, told))
        except ValueError:
            return False
        return bool(other._complete(file))

    def _num_fitting(self, file: FileTensors, prefix: str) -> int:
        state = file.entry(prefix)[0]
        return sum(name in state and state[name].shape == shape for name, shape in self._shapes.items())

    def note(self, text: str) -> None:
        """Keep a line on what was decided, once."""
        self._notes[text] = None
