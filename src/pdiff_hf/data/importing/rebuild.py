"""The closed list of what a pickle may build: tensors, arrays as tensors, and containers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .placeholder import Placeholder

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
    # Known by their size, so that what is behind them is found; their tensors stay placeholders.
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "QUInt4x2Storage": torch.quint4x2,
    "QUInt2x4Storage": torch.quint2x4,
}
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool),
        *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
        *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    )
}
# numpy's codes of kind and bytes; strings, objects, records and dates are no tensors.
ARRAYS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"}

# What files may become beyond their own size: small tensors that are expanded, strings that are decoded twice.
SLACK = 2**26

# Longer integers can be made so that all of them have one hash.
KEY_BITS = 63


ALONE = "save the state dict alone, as safetensors"


class Unreadable(ValueError):
    """What was found in a file that may be whole, and what to do; not that it is damaged."""


class Budget:
    """What reading one file may cost, so that a small file cannot become a large one.

    Args:
        size (`int`): Of the file, in bytes.
        operations (`int`, *optional*, defaults to 1,500,000): Operations of its pickles.
    """

    def __init__(self, size: int, operations: int = 1_500_000):
        self.bytes = 8 * size + SLACK
        self.operations = operations

    def take(self, number: int) -> None:
        """Count bytes that are made."""
        self.bytes -= number
        if self.bytes < 0:
            raise Unreadable(f"what unfolds to many times the size of the file; {ALONE}")


@dataclass(eq=False, repr=False, slots=True)
class Storage(Placeholder):
    """The values of tensors, as bytes in memory or mapped from a file."""

    untyped: torch.UntypedStorage | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the values, by the name."""
        return STORAGES.get(self.name)


class UnbuiltArray(Placeholder):
    """A numpy array whose state comes next; `keys` are its places in the memo."""

    __slots__ = ("keys",)

    def __init__(self):
        super().__init__("numpy", "ndarray", ())
        self.keys: list[int] = []


def key(value: Any) -> Any:
    """A key of a dictionary; what could make hashing slow becomes a [`Placeholder`]."""
    if isinstance(value, Placeholder) or _is_quick(value):
        return value
    if type(value) is tuple and len(value) <= 16 and all(map(_is_quick, value)):
        return value
    if type(value) in (int, tuple):
        return Placeholder("builtins", type(value).__name__, (value,))
    raise ValueError(f"a {type(value).__name__} as the key of a dictionary")


def _is_quick(value: Any) -> bool:
    if type(value) is int:
        return value.bit_length() <= KEY_BITS
    return type(value) in (str, bytes, float, bool, type(None))


def tensor(args: tuple, budget: Budget, dtype: torch.dtype | None = None) -> torch.Tensor | None:
    """`storage, offset, size, stride`, inside of the storage; `None` for a quantised storage."""
    storage, offset, size, stride = args[:4]
    if not isinstance(storage, Storage) or storage.untyped is None:
        raise ValueError("a tensor without a storage")
    shaped = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 64
    if not shaped or any(type(number) is not int or number < 0 for number in (offset, *size, *stride)):
        raise ValueError("a tensor without shape and strides")
    dtype = dtype or storage.dtype
    if dtype not in DTYPES.values():
        return None
    numel, available = math.prod(size), storage.untyped.nbytes()
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if numel else -1
    if (last + 1) * dtype.itemsize > available:
        raise ValueError("a tensor beyond its storage")
    if numel * dtype.itemsize > available:
        budget.take(numel * dtype.itemsize)
    if storage.untyped.data_ptr() % dtype.itemsize:
        budget.take(available)
        storage.untyped = storage.untyped.clone()
    return torch.empty(0, dtype=dtype).set_(storage.untyped, offset if numel else 0, size, stride)


def numpy_dtype(value: Any) -> np.dtype | None:
    """Of a pickled `numpy.dtype`; `None` where its values are no numbers."""
    if not isinstance(value, Placeholder) or (value.module, value.name) != ("numpy", "dtype") or not value.args:
        return None
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "="
    order = order.decode("ascii") if isinstance(order, bytes) else order
    code = value.args[0].decode("ascii") if isinstance(value.args[0], bytes) else value.args[0]
    return np.dtype(f"{order}{code}") if code in ARRAYS and order in ("<", ">", "|", "=") else None


def array(dtype: np.dtype | None, shape: Any, raw: Any, fortran: bool, budget: Budget) -> torch.Tensor | None:
    """The tensor of an array's bytes; `None` where they are no numbers."""
    raw = raw.encode("latin-1") if isinstance(raw, str) else raw
    if dtype is None or not isinstance(raw, (bytes, bytearray)):
        return None
    if not isinstance(shape, tuple) or len(shape) > 64 or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("an array without a shape")
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array of another size than its bytes")
    budget.take(2 * len(raw))
    values = np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(values.astype(dtype.newbyteorder("="), order="C", copy=True))


def _storage_tensor_v3(args: tuple, budget: Budget) -> torch.Tensor | None:
    dtype = DTYPES.get(args[6].name) if isinstance(args[6], Placeholder) and args[6].module == "torch" else None
    return None if dtype is None else tensor(args, budget, dtype)


def _parameter(args: tuple, budget: Budget) -> Any:
    return args[0] if args and isinstance(args[0], (torch.Tensor, Placeholder)) else None


def _from_numpy(args: tuple, budget: Budget) -> torch.Tensor | None:
    return args[0] if isinstance(args[0], torch.Tensor) else None


def _scalar(args: tuple, budget: Budget) -> Any:
    values = array(numpy_dtype(args[0]), (1,), args[1], False, budget) if len(args) == 2 else None
    return None if values is None else values.item()


def _buffer_array(args: tuple, budget: Budget) -> torch.Tensor | None:
    raw, dtype, shape, order = args
    return array(numpy_dtype(dtype), shape, raw, order == "F", budget)


def _unbuilt(args: tuple, budget: Budget) -> UnbuiltArray | None:
    kind = args[0] if args else None
    return UnbuiltArray() if isinstance(kind, Placeholder) and kind.full_name == "numpy.ndarray" else None


def _dict(args: tuple, budget: Budget) -> dict:
    items = args[-1] if args and isinstance(args[-1], (dict, list, tuple)) else ()
    budget.take(100 * len(items))
    return {key(k): v for k, v in (items.items() if isinstance(items, dict) else items)}


def _list(args: tuple, budget: Budget) -> list | None:
    values = args[0] if args else ()
    if not isinstance(values, (list, tuple)):
        return None
    budget.take(8 * len(values))
    return list(values)


def _tuple(args: tuple, budget: Budget) -> tuple | None:
    values = _list(args, budget)
    return None if values is None else tuple(values)


def _encoded(args: tuple, budget: Budget) -> bytes | None:
    text, encoding = (*args, "utf-8")[:2]
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        return None
    budget.take(len(text))
    return text.encode(encoding)


def _bytes(args: tuple, budget: Budget) -> bytes | None:
    if args and isinstance(args[0], str):
        return _encoded(args, budget)
    if args and not isinstance(args[0], (bytes, bytearray)):
        return None
    value = args[0] if args else b""
    budget.take(len(value))
    return bytes(value)


def _complex(args: tuple, budget: Budget) -> complex | None:
    return complex(*args) if 1 <= len(args) <= 2 and all(type(a) in (int, float) for a in args) else None


def _instance(args: tuple, budget: Budget) -> Placeholder | None:
    kind = args[0] if args else None
    budget.take(8 * len(args))
    return Placeholder(kind.module, kind.name, args[1:]) if isinstance(kind, Placeholder) else None


# Each gets arguments and budget, and gives `None` where a placeholder has to stand for the result.
REBUILD: Mapping[tuple[str, str], Callable[[tuple, Budget], Any]] = {
    ("torch._utils", "_rebuild_tensor"): tensor,
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _storage_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _from_numpy,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _from_numpy,
    ("torch", "Size"): _tuple,
    **{
        (f"numpy.{core}.{module}", name): build
        for core in ("core", "_core")
        for module, name, build in (
            ("multiarray", "_reconstruct", _unbuilt),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _buffer_array),
        )
    },
    ("collections", "OrderedDict"): _dict,
    ("collections", "defaultdict"): lambda args, budget: _dict(args[1:2], budget),
    ("collections", "Counter"): _dict,
    ("builtins", "dict"): _dict,
    ("builtins", "list"): _list,
    ("builtins", "set"): _list,
    ("builtins", "frozenset"): _list,
    ("builtins", "tuple"): _tuple,
    ("builtins", "bytearray"): _bytes,
    ("builtins", "bytes"): _bytes,
    ("builtins", "complex"): _complex,
    ("_codecs", "encode"): _encoded,
    ("copyreg", "_reconstructor"): _instance,
    ("copyreg", "__newobj__"): _instance,
}
