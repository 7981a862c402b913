"""A machine for pickles that imports nothing: names stay names, and only [`REBUILD`] is ever called."""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

from .placeholder import Placeholder
from .rebuild import ALONE, REBUILD, Budget, UnbuiltArray, Unreadable, array, key, numpy_dtype

# Of the result: deep enough for any checkpoint, and so that what walks through it may be recursive.
DEPTH = 100
UNFOLDED = 1_500_000
INTEGER_BITS = 8192

VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
NOTHING = {"PROTO", "FRAME", "STOP"}
# A name or a call makes an object, and takes about as long as three other operations.
COSTS = dict.fromkeys(("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "EMPTY_DICT"), 3)
# Modules that Python 2 called otherwise.
RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class _Mark:
    """Begins the operands of an operation."""


MARK = _Mark()


def unpickle(
    stream: BinaryIO,
    budget: Budget,
    persistent_load: Callable[[tuple], Any] | None = None,
    load_bytes: Callable[[bytes], Any] | None = None,
) -> Any:
    """The value of the pickle that begins where the stream stands, which then stands behind it.

    Args:
        stream (`BinaryIO`): Bytes that are not trusted.
        budget ([`Budget`]): What reading may cost.
        persistent_load (`Callable`, *optional*): Gives what a persistent id names; without it, there may be none.
        load_bytes (`Callable`, *optional*): Reads a PyTorch file in bytes, as pickled storages are.

    Returns:
        `Any`: dictionaries, lists, tuples, tensors, strings, bytes, numbers, and [`Placeholder`]s for all else.

    Raises:
        Exception: any, where the bytes are no pickle; `ValueError` where it exceeds a bound.
    """
    machine = _Machine(budget, persistent_load, load_bytes)
    try:
        value = machine.run(stream)
    finally:
        # Its operations refer to the machine: what it has read would stay until garbage is collected.
        machine.operations.clear()
    check_nesting(value)
    return value


def check_nesting(value: Any) -> None:
    """Refuse containers that hold themselves, are nested deeply, or share parts so that they unfold to millions."""
    containers = (dict, list, tuple)
    heights: dict[int, int] = {}
    sizes: dict[int, int] = {}
    opened: set[int] = set()
    stack = [(value, False)] if isinstance(value, containers) else []
    while stack:
        node, done = stack.pop()
        number = id(node)
        parts = node.values() if isinstance(node, dict) else node
        if not done:
            if number in heights:
                continue
            if number in opened:
                raise Unreadable(f"a container that holds itself; {ALONE}")
            opened.add(number)
            if len(opened) > DEPTH:
                raise Unreadable(f"containers more than {DEPTH} deep; {ALONE}")
            stack.append((node, True))
            stack += [(part, False) for part in parts if isinstance(part, containers) and id(part) not in heights]
            continue
        opened.discard(number)
        inner = [id(part) for part in parts if isinstance(part, containers)]
        heights[number] = 1 + max((heights[part] for part in inner), default=0)
        sizes[number] = 1 + len(node) + sum(sizes[part] for part in inner)
        if heights[number] > DEPTH or sizes[number] > UNFOLDED:
            raise Unreadable(f"containers that are nested without end; {ALONE}")


class _Machine:
    def __init__(self, budget: Budget, persistent_load: Callable | None, load_bytes: Callable | None):
        self.budget, self.persistent_load, self.load_bytes = budget, persistent_load, load_bytes
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.operations: dict[str, Callable[[Any], None]] = {
            "MARK": lambda _: self.stack.append(MARK),
            "POP": lambda _: self.stack.pop(),
            "POP_MARK": lambda _: self.operands(),
            "DUP": lambda _: self.stack.append(self.stack[-1]),
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_SET": lambda _: self.stack.append([]),
            "LIST": lambda _: self.stack.append(self.operands()),
            "FROZENSET": lambda _: self.stack.append(self.operands()),
            "TUPLE": lambda _: self.stack.append(tuple(self.operands())),
            "TUPLE1": lambda _: self.tuple(1),
            "TUPLE2": lambda _: self.tuple(2),
            "TUPLE3": lambda _: self.tuple(3),
            "DICT": self.dict,
            "APPEND": lambda _: self.extend([self.stack.pop()]),
            "APPENDS": lambda _: self.extend(self.operands()),
            "ADDITEMS": lambda _: self.extend(self.operands()),
            "SETITEM": lambda _: self.update([self.stack.pop(-2), self.stack.pop()]),
            "SETITEMS": lambda _: self.update(self.operands()),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self.put),
            "MEMOIZE": lambda _: self.put(len(self.memo)),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), self.get),
            "GLOBAL": lambda names: self.stack.append(self.named(*names.partition(" ")[::2])),
            "STACK_GLOBAL": lambda _: self.stack.append(self.named(self.stack.pop(-2), self.stack.pop())),
            "REDUCE": lambda _: self.stack.append(self.call(self.stack.pop(-2), self.stack.pop())),
            "NEWOBJ": lambda _: self.stack.append(self.call(self.stack.pop(-2), self.stack.pop())),
            "NEWOBJ_EX": self.new_with_keywords,
            "INST": self.instance,
            "OBJ": self.object,
            "BUILD": self.build,
            "BINPERSID": self.persistent,
        }

    def run(self, stream: BinaryIO) -> Any:
        """Up to the end of one pickle."""
        for opcode, argument, _ in pickletools.genops(stream):
            name = opcode.name
            self.budget.operations -= COSTS.get(name, 1)
            if self.budget.operations < 0:
                raise Unreadable(f"more objects than are read of a checkpoint; {ALONE}")
            if name in VALUES:
                if type(argument) is int and argument.bit_length() > INTEGER_BITS:
                    raise ValueError("an integer of thousands of digits")
                self.stack.append(argument)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name in self.operations:
                self.operations[name](argument)
            elif name not in NOTHING:
                raise ValueError(f"the operation {name}")
        if len(self.stack) != 1:
            raise ValueError("a pickle of several values")
        return self.stack.pop()

    def operands(self) -> list:
        """What is on the stack since the last mark."""
        start = len(self.stack) - 1
        while self.stack[start] is not MARK:
            start -= 1
            if start < 0:
                raise ValueError("operands without a beginning")
        found = self.stack[start + 1 :]
        del self.stack[start:]
        return found

    def tuple(self, length: int) -> None:
        if len(self.stack) < length:
            raise ValueError("an operation without operands")
        self.stack[-length:] = [tuple(self.stack[-length:])]

    def dict(self, _: None) -> None:
        items = self.operands()
        self.stack.append({})
        self.update(items)

    def extend(self, values: list) -> None:
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            target.elements = target = [] if target.elements is None else target.elements
        if type(target) is not list:
            raise ValueError(f"elements of a {type(target).__name__}")
        target.extend(values)

    def update(self, items: list) -> None:
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            target.entries = target = {} if target.entries is None else target.entries
        if type(target) is not dict or len(items) % 2:
            raise ValueError(f"items of a {type(target).__name__}")
        for name, value in zip(items[::2], items[1::2], strict=True):
            target[key(name)] = value

    def put(self, index: int) -> None:
        value = self.stack[-1]
        self.memo[index] = value
        if isinstance(value, UnbuiltArray):
            value.keys.append(index)

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def named(self, module: Any, name: Any) -> Placeholder:
        if type(module) is not str or type(name) is not str:
            raise ValueError("a class without a name")
        if module.startswith("joblib."):
            raise Unreadable("a file of joblib; convert it: numpy.savez(NEW, **joblib.load(FILE)), which executes it")
        return Placeholder(RENAMED.get(module, module), name)

    def call(self, function: Any, args: Any) -> Any:
        """What [`REBUILD`] makes of the arguments, or what stands for the result."""
        if not isinstance(function, Placeholder) or type(args) is not tuple:
            raise ValueError("a call of what is no function")
        if function.args is not None:
            return Placeholder(function.module, function.name, (function, args))
        name = (function.module, function.name)
        if name == ("torch._tensor", "_rebuild_from_type_v2") and len(args) == 4:
            # A subclass of tensors, or one with attributes: the tensor within.
            return self.call(args[0], args[2])
        if name == ("torch.storage", "_load_from_bytes") and self.load_bytes and len(args) == 1:
            return self.load_bytes(args[0])
        result = REBUILD[name](args, self.budget) if name in REBUILD else None
        return Placeholder(*name, args) if result is None else result

    def new_with_keywords(self, _: None) -> None:
        keywords, args, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, args))
        if isinstance(self.stack[-1], Placeholder):
            self.stack[-1].state = keywords

    def instance(self, names: str) -> None:
        args = tuple(self.operands())
        self.stack.append(self.call(self.named(*names.partition(" ")[::2]), args))

    def object(self, _: None) -> None:
        function, *args = self.operands()
        self.stack.append(self.call(function, tuple(args)))

    def build(self, _: None) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, UnbuiltArray) and isinstance(state, tuple) and len(state) == 5:
            _, shape, dtype, fortran, raw = state
            result = array(numpy_dtype(dtype), shape, raw, bool(fortran), self.budget)
            if result is not None:
                self.stack[-1] = result
                self.memo.update(dict.fromkeys(target.keys, result))
                return
        # Attributes of containers and tensors are not their values.
        if isinstance(target, Placeholder):
            target.state = state

    def persistent(self, _: None) -> None:
        if self.persistent_load is None:
            raise ValueError("a persistent id")
        self.stack.append(self.persistent_load(self.stack.pop()))
