"""What a network computes apart from the values of its tensors, described: equal descriptions, equal graphs."""

from __future__ import annotations

import enum
import functools
import hashlib
import itertools
import sys
import sysconfig
import types
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor
from torch.nn.modules import module as global_hooks

# Of these, classes and functions are known by their names, their versions and their code.
LIBRARIES = ("diffusers", "pdiff_hf", "timm", "torch", "torchvision", "transformers")
# What own code may use as a module beside them.
MODULES = (*LIBRARIES, "collections", "functools", "itertools", "math", "operator", "typing")

PLAIN = (bool, int, float, complex, str, bytes, range, slice, type(None), type(Ellipsis), type(NotImplemented))
TORCH_VALUES = (torch.dtype, torch.device, torch.memory_format, torch.layout)
OPERATIONS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
CONTAINERS = (list, tuple, torch.Size, dict, OrderedDict, defaultdict, set, frozenset, types.MappingProxyType)
TENSORS = (torch.Tensor, nn.Parameter, nn.Buffer, FakeTensor)

# Hooks by number, and the sets of their numbers that say how each is called.
FORWARD_HOOKS = {
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
}
# Of a module: what is described apart, and what plays no part in a forward pass without gradients.
SKIPPED = {
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
    *FORWARD_HOOKS,
    *itertools.chain.from_iterable(FORWARD_HOOKS.values()),
}


def hash_of_structure(model: nn.Module, inputs: torch.Tensor) -> str | None:
    """Hash of everything that the graph of a network may depend on, for inputs of any number.

    Classes, their functions and attributes, the attributes of modules, hooks; shapes, types, strides and devices of
    parameters, buffers and of an input, and which of them are one; versions and settings of torch. The values of
    parameters and buffers play no part.

    Returns:
        `str`, or `None` when something about the network cannot be told in this way: tensors or objects of unknown
        classes among its attributes, say, or functions that use what may change.
    """
    hooks = (global_hooks._global_forward_hooks, global_hooks._global_forward_pre_hooks)
    if any(hooks) or any(type(tensor) not in TENSORS for tensor in (inputs, *model.parameters(), *model.buffers())):
        return None
    digest = hashlib.sha256()
    try:
        for part in (*_settings(inputs.device.type), *_Description().tensor(inputs[:0]), *_Description().of(model)):
            digest.update(f"{part}\n".encode())
    except (_UnknownError, RecursionError):
        return None
    return digest.hexdigest()


class _UnknownError(Exception):
    """Something has no exact description."""


def _settings(device: str) -> Iterator[Any]:
    yield sys.version, torch.__version__, torch.get_default_dtype()
    yield torch.get_default_device()
    yield torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    yield torch.are_deterministic_algorithms_enabled()
    yield torch.backends.mha.get_fastpath_enabled()


class _Description:
    """Parts of the description of one value. What comes again is named by its number."""

    def __init__(self):
        # Kept alive, so that no other object gets the same id.
        self._seen: dict[int, tuple[int, Any]] = {}

    def of(self, value: Any) -> Iterator[Any]:
        kind = type(value)
        if kind in PLAIN or kind in TORCH_VALUES or kind in OPERATIONS:
            yield kind.__name__, repr(value)
            return
        # Which tuples are one object is chance.
        if kind not in (tuple, torch.Size, frozenset):
            if id(value) in self._seen:
                yield "again", self._seen[id(value)][0]
                return
            self._seen[id(value)] = len(self._seen), value
        yield from self._parts(value, kind)
        # Whose the next parts are.
        yield "end"

    def _parts(self, value: Any, kind: type) -> Iterator[Any]:
        if isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, enum.Enum):
            yield from self.of(kind)
            yield value.name
        elif kind is types.FunctionType:
            yield from self._function(value)
        elif kind is types.MethodType:
            yield from self.all((value.__func__, value.__self__))
        elif kind is types.BuiltinFunctionType:
            yield from self._builtin(value)
        elif kind is types.ModuleType:
            if value.__name__.partition(".")[0] not in MODULES:
                raise _UnknownError
            yield "module", value.__name__
        elif kind in (staticmethod, classmethod):
            yield kind.__name__
            yield from self.of(value.__func__)
        elif isinstance(value, property):
            yield from self.all((value.fget, value.fset, value.fdel))
        elif kind is functools.partial:
            yield from self.all((value.func, value.args, value.keywords))
        elif kind in CONTAINERS:
            yield kind.__name__, len(value)
            # Sets of text have another order in every process.
            is_unordered = kind in (set, frozenset)
            yield from self.all(sorted(value, key=repr) if is_unordered else value)
            if isinstance(value, (dict, types.MappingProxyType)):
                yield from self.all(value.values())
        elif isinstance(value, nn.Module):
            yield from self._module(value)
        else:
            yield from self._object(value)

    def all(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            yield from self.of(value)

    def tensor(self, tensor: torch.Tensor) -> Iterator[Any]:
        if id(tensor) in self._seen:
            yield "tied", self._seen[id(tensor)][0]
            return
        self._seen[id(tensor)] = len(self._seen), tensor
        yield type(tensor).__name__, tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device, tensor.layout
        yield tensor.is_conj(), tensor.is_neg(), tensor.requires_grad

    def _module(self, module: nn.Module) -> Iterator[Any]:
        yield from self.of(type(module))
        own = vars(module)
        for name in FORWARD_HOOKS:
            # The numbers count all hooks of the process.
            yield name
            for key, hook in own[name].items():
                yield [
                    key in own[f"{name}{kind}"]
                    for kind in ("_with_kwargs", "_always_called")[: 1 + ("pre" not in name)]
                ]
                yield from self.of(hook)
        for name in sorted(own.keys() - SKIPPED):
            yield "attribute", name
            yield from self.of(own[name])
        for kind in ("_parameters", "_buffers"):
            for name, tensor in own[kind].items():
                yield kind, name, name in own["_non_persistent_buffers_set"]
                if tensor is not None:
                    yield from self.tensor(tensor)
        for name, child in own["_modules"].items():
            yield "child", name
            yield from self.of(child)

    def _object(self, value: Any) -> Iterator[Any]:
        """An object that is its class and its attributes."""
        kinds = type(value).__mro__[:-1]
        has_more = any(not _is_python(kind) or "__slots__" in vars(kind) for kind in kinds)
        if not kinds or has_more or isinstance(value, torch.Tensor):
            raise _UnknownError
        yield from self.of(type(value))
        for name in sorted(vars(value)):
            yield "attribute", name
            yield from self.of(vars(value)[name])

    def _class(self, kind: type) -> Iterator[Any]:
        yield "class", kind.__module__, kind.__qualname__
        top = kind.__module__.partition(".")[0]
        if top in sys.stdlib_module_names or (top in LIBRARIES and not _is_python(kind)):
            return
        if not _is_python(kind):
            raise _UnknownError
        yield sys.modules[top].__version__ if top in LIBRARIES else None
        yield from self.all(kind.__mro__[1:])
        for name, member in sorted(vars(kind).items()):
            # Transformers gives it to `nn.Module` as it initialises its first model.
            if name == "smart_apply":
                continue
            is_code = isinstance(member, (types.FunctionType, staticmethod, classmethod, property))
            if is_code or type(member) in PLAIN or not (top in LIBRARIES or name.startswith("__")):
                yield "member", name
                yield from self.of(member)

    def _function(self, function: types.FunctionType) -> Iterator[Any]:
        yield "function", function.__module__, function.__qualname__
        yield from _code(function.__code__)
        is_known = _is_known_file(function.__code__.co_filename)
        for value in (function.__defaults__, function.__kwdefaults__, *_closure(function)):
            # What decorators of the libraries keep is theirs, but for the function that they decorate.
            if not is_known or type(value) in (*PLAIN, types.FunctionType):
                yield from self.of(value)
        if is_known:
            return
        # Code of the user's own is known when all that it names is.
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                yield "global", name
                yield from self.of(function.__globals__[name])

    def _builtin(self, function: types.BuiltinFunctionType) -> Iterator[Any]:
        owner = function.__self__
        if not (owner is None or isinstance(owner, (type, types.ModuleType))):
            raise _UnknownError
        yield "builtin", function.__module__, function.__qualname__


def _is_python(kind: type) -> bool:
    """Whether a class is defined by Python code, and so has no state beside its attributes."""
    return bool(kind.__flags__ & 1 << 9)


@functools.cache
def _is_known_file(file: str) -> bool:
    """Whether a file of code is one of the known libraries, or of Python's own."""
    own, folders = sysconfig.get_paths(), [Path(sys.modules[n].__file__).parent for n in LIBRARIES if n in sys.modules]
    parents = Path(file).parents
    is_installed = any(Path(own[key]) in parents for key in ("purelib", "platlib"))
    return any(folder in parents for folder in folders) or (Path(own["stdlib"]) in parents and not is_installed)


def _closure(function: types.FunctionType) -> list[Any]:
    try:
        return [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError as error:  # of a name that has no value yet
        raise _UnknownError from error


def _code(code: types.CodeType) -> Iterator[Any]:
    yield code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, code.co_flags
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code(constant)
        else:
            yield sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant)


def _names(code: types.CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inner)
