"""An accelerator that is not there: tensors say `pretend:0`, values are on the CPU, and it is as strict as CUDA.

An operation on tensors of the two devices is an error, so is a generator of the other device, and so is `numpy()`.
What runs is counted: launches, the host's waits for the device, copies between the two.

torch lets a device be registered in Python (`torch.utils.backend_registration`, experimental, since torch 2.11).
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
import torch.utils.backend_registration as registration
from accelerate import PartialState
from accelerate.state import AcceleratorState
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

IS_SUPPORTED = hasattr(registration, "_setup_privateuseone_for_python_backend")
NAME = "pretend"
# As it has: nothing that is sized by it fits in less on the CPU.
TOTAL_MEMORY = 2**35

aten = torch.ops.aten
# Data for the host: it waits until the device has computed them, or how many they are.
WAITING = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
}
INDEXING = {
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
}
COPYING = {aten._copy_from.default, aten._to_copy.default, aten.copy.default, aten.copy_.default}
LIFTING = {aten.lift_fresh.default, aten.lift_fresh_copy.default}


class DeviceMismatchError(RuntimeError):
    """What CUDA would have refused."""


class Counts:
    """What the device and the host have done, by the line of the package that asked for it.

    Attributes:
        launches (`Counter`): Operations that compute or copy on the device: kernels, one for each where CUDA has one.
        waits (`Counter`): How often the host had to wait for the device: values, blocking copies, `synchronize()`.
        to_host, to_device (`Counter`): Copies between the two.
        mixed (`list[str]`): What was refused; [`pretended_device`] fails for it even if somebody has caught it.
    """

    def __init__(self):
        self.launches, self.waits, self.to_host, self.to_device = Counter(), Counter(), Counter(), Counter()
        self.operations: Counter[str] = Counter()
        self.launched = 0
        self.mixed: list[str] = []

    def clear(self) -> None:
        """Count from zero."""
        for counter in (self.launches, self.waits, self.to_host, self.to_device, self.operations):
            counter.clear()

    def refuse(self, message: str) -> None:
        """Raise what CUDA would."""
        self.mixed.append(f"{message} at {_place()}")
        raise DeviceMismatchError(self.mixed[-1])


class _Active:
    """The counts of the running pretence."""

    counts: Counts | None = None


def _place() -> str:
    """The innermost line of the package that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        _, found, path = frame.f_code.co_filename.partition("/pdiff_hf/")
        if found:
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def _register() -> torch.device:
    """Register the device with torch, once a process; outside of the pretence it says that it is not available."""
    if torch._C._get_privateuse1_backend_name() == NAME:
        return torch.device(NAME, 0)

    class Module(registration._DummyBackendModule):
        def is_available(self):
            return _Active.counts is not None

        def device_count(self):
            return int(self.is_available())

        def get_amp_supported_dtype(self):
            return [torch.bfloat16, torch.float16]

        def get_device_name(self, device=None):
            return "a pretended device"

        def synchronize(self, device=None):
            _Active.counts.waits[_place()] += 1

    class Hook(registration._DummyPrivateUse1Hook):
        def is_available(self):
            return _Active.counts is not None

    registration._setup_privateuseone_for_python_backend(NAME, Module(), Hook())
    _register_autocast()
    _register_kernels()
    return torch.device(NAME, 0)


# The rules of CUDA's autocast, of those operations that networks here have.
IN_LOWER_PRECISION = ("addmm", "baddbmm", "bmm", "conv1d", "conv2d", "convolution", "linear", "matmul", "mm")
IN_FLOAT32 = ("group_norm", "layer_norm", "log_softmax.int", "mse_loss", "nll_loss", "softmax.int")
_libraries: list[torch.library.Library] = []


def _register_autocast() -> None:
    rest, rules = (torch.library.Library(name, "IMPL", "AutocastPrivateUse1") for name in ("_", "aten"))
    rest.fallback(torch.library.fallthrough_kernel)
    for name in (*IN_LOWER_PRECISION, *IN_FLOAT32):
        packet, _, overload = name.partition(".")
        operation = getattr(getattr(aten, packet), overload or "default")
        rules.impl(operation, _casting(operation, torch.float32 if name in IN_FLOAT32 else None))
    _libraries.extend((rest, rules))


# One kernel each on CUDA; of a device that has none, torch makes several operations.
SINGLE_KERNELS = ("mish_backward", "silu_backward")


def _register_kernels() -> None:
    kernels = torch.library.Library("aten", "IMPL", "PrivateUse1")
    for name in SINGLE_KERNELS:
        operation = getattr(aten, name).default
        kernels.impl(operation, functools.partial(_run_kernel, operation))
    _libraries.append(kernels)
    # So that operations on lists of tensors are chosen as for a device that has them.
    _foreach_utils._foreach_supported_types.append(PretendedTensor)


def _run_kernel(operation, *args):
    return _run(operation, args, {})


def _casting(operation, dtype: torch.dtype | None):
    def cast(*args, **kwargs):
        wanted = dtype or torch.get_autocast_dtype(NAME)

        def own(leaf):
            return leaf.to(wanted) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

        with torch.autocast(NAME, enabled=False):
            return operation(*pytree.tree_map(own, args), **pytree.tree_map(own, kwargs))

    return cast


class PretendedTensor(torch.Tensor):
    """A tensor of the pretended device with its values, `inner`, on the CPU."""

    @staticmethod
    def __new__(cls, inner, requires_grad=False):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
        )

    def __init__(self, inner, requires_grad=False):
        self.inner = inner

    def __repr__(self):
        return f"PretendedTensor({self.inner!r})"

    def __reduce_ex__(self, protocol):
        # In files there are only values.
        return self.inner.__reduce_ex__(protocol)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


@functools.cache
def _is_view(func) -> bool:
    returns = [value for value in func._schema.returns if "Tensor" in str(value.type)]
    aliases = [value.alias_info for value in returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


_pinned: set[int] = set()


def _is_blocking(func, args, kwargs, to_host: bool) -> bool:
    """Whether a copy between the devices makes the host wait; see `copy_kernel_cuda` in torch."""
    non_blocking = kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2])
    if not non_blocking or not to_host:
        return not non_blocking
    # What `to` makes on the host without blocking, it makes in pinned memory.
    return func is aten.copy_.default and args[0].untyped_storage().data_ptr() not in _pinned


def _run(func, args, kwargs):
    """One operation: checked, counted, computed on the CPU."""
    counts, leaves = _Active.counts, pytree.tree_leaves((args, kwargs))
    pretended = [leaf for leaf in leaves if isinstance(leaf, PretendedTensor)]
    device = kwargs.get("device")
    wanted = device is not None and torch.device(device).type == NAME
    if counts is None or not (pretended or wanted):
        return func(*args, **kwargs)
    if func is torch.ops.prim.device.default:
        return torch.device(NAME, 0)
    name, on_device = func._schema.name, True
    hosts = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, PretendedTensor)]
    if func in COPYING:
        on_device = isinstance(args[0], PretendedTensor) if "copy_" in name else wanted or device is None
        source = args[0] if func is aten._to_copy.default else args[1]
        if isinstance(source, PretendedTensor) != on_device:
            (counts.to_device if on_device else counts.to_host)[_place()] += 1
            counts.waits[_place()] += _is_blocking(func, args, kwargs, to_host=not on_device)
    elif func not in LIFTING:
        foreign = [tensor for tensor in hosts if tensor.ndim > 0]
        if func in INDEXING:
            # An index may come from the host, and is copied; the device's is none for a tensor of the host.
            indices = {id(leaf) for leaf in pytree.tree_leaves(args[1]) if isinstance(leaf, torch.Tensor)}
            copied = [tensor for tensor in foreign if id(tensor) in indices]
            counts.to_device[_place()] += len(copied)
            counts.waits[_place()] += len(copied)
            masks = [leaf for leaf in pytree.tree_leaves(args[1]) if getattr(leaf, "dtype", None) is torch.bool]
            counts.waits[_place()] += len(masks)
            foreign = [tensor for tensor in foreign if id(tensor) not in indices]
            if not isinstance(args[0], PretendedTensor):
                foreign.append(args[0])
        if pretended and foreign:
            counts.refuse(f"expected all tensors on one device, found {NAME} and cpu in {name}")
    # With their number given, nobody has to ask how many values there will be.
    counts.waits[_place()] += func in WAITING and kwargs.get("output_size") is None
    if not _is_view(func) and func is not aten.detach.default and "empty" not in name:
        counts.launches[_place()] += 1
        counts.operations[name] += 1
        counts.launched += 1

    inner = {id(tensor): tensor.inner for tensor in pretended}
    args, kwargs = pytree.tree_map(lambda leaf: inner.get(id(leaf), leaf), (args, kwargs))
    if wanted:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    results = func(*args, **kwargs)
    known = {id(tensor.inner): tensor for tensor in pretended} | {id(tensor): tensor for tensor in hosts}

    def returned(result):
        if not isinstance(result, torch.Tensor) or func is aten.equal.default:
            return result
        return known.get(id(result)) if id(result) in known else PretendedTensor(result) if on_device else result

    return pytree.tree_map(returned, results)


class _Dispatch(TorchDispatchMode):
    """Sees what has no tensor of the device yet, such as `torch.zeros(3, device="pretend")`."""

    def __enter__(self):
        self._lifts_cpu_only = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        torch._C._ensureCUDADeviceGuardSet()
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(self._lifts_cpu_only)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Generators belong to the device that they fill, and the values of a tensor on a device are not the host's."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, tensor = kwargs or {}, args[0] if args else None
        generator = kwargs.get("generator")
        if isinstance(generator, torch.Generator):
            device = kwargs.get("device") or (tensor.device if isinstance(tensor, torch.Tensor) else "cpu")
            if torch.device(device).type != generator.device.type:
                _Active.counts.refuse(f"expected a generator of {device}, found one of {generator.device.type}")
        if func is torch.Tensor.pin_memory:
            pinned = tensor.clone()
            _pinned.add(pinned.untyped_storage().data_ptr())
            return pinned
        if func is torch.Tensor.is_pinned:
            return not isinstance(tensor, PretendedTensor) and tensor.untyped_storage().data_ptr() in _pinned
        if isinstance(tensor, PretendedTensor):
            if func in (torch.Tensor.numpy, torch.Tensor.__array__):
                _Active.counts.refuse(f"can't convert a {NAME} tensor to numpy; use Tensor.cpu() first,")
            if func is torch.Tensor.tolist:
                _Active.counts.waits[_place()] += 1
            if func in (torch.Tensor.tolist, torch.Tensor.untyped_storage, torch.Tensor.data_ptr):
                return func(tensor.inner, *args[1:], **kwargs)
        is_pinned = kwargs.get("pin_memory")
        result = func(*args, **({**kwargs, "pin_memory": False} if is_pinned else kwargs))
        if func is aten.scaled_dot_product_attention.default:
            # As the program that was exported on the host knows it.
            return result.transpose(1, 2).contiguous().transpose(1, 2)
        if is_pinned:
            _pinned.add(result.untyped_storage().data_ptr())
        return result


class _Event:
    """A place in the queue of the device: who waits for it when more is queued behind it, hardly waits."""

    def __init__(self, device=None):
        self._launched = None

    def record(self, stream=None):
        self._launched = _Active.counts.launched

    def synchronize(self):
        _Active.counts.waits[_place()] += self._launched == _Active.counts.launched


class _Generator(torch.Generator):
    """A source of random numbers that says on which device it is."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, device="cpu")

    def __init__(self, device="cpu"):
        self._type = torch.device(device).type

    @property
    def device(self):
        return torch.device(NAME, 0) if self._type == NAME else torch.device("cpu")


class _HostProgram:
    """What `torch.export` gives for a model of the device: traced on the host, and moved."""

    def __init__(self, program: torch.export.ExportedProgram):
        self._program = program

    def run_decompositions(self, table: dict | None = None) -> torch.export.ExportedProgram:
        program = self._program.run_decompositions(table)
        for node in program.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": torch.device(NAME, 0)}
        program.graph_module.recompile()
        program.constants.update({name: tensor.to(NAME) for name, tensor in program.constants.items()})
        return program


def _on_host(value: Any) -> Any:
    return value.inner if isinstance(value, PretendedTensor) else value


def _export(export: Callable) -> Callable:
    """`torch.export.export` of a copy on the host: fake tensors and the pretended device do not go together."""

    @functools.wraps(export)
    def exporting(module: torch.nn.Module, args: tuple, *more, **options) -> _HostProgram:
        import copy

        host = copy.deepcopy(module)
        for own in host.modules():
            for name, parameter in own._parameters.items():
                if parameter is not None:
                    own._parameters[name] = torch.nn.Parameter(_on_host(parameter.detach()), parameter.requires_grad)
            for name, buffer in own._buffers.items():
                own._buffers[name] = _on_host(buffer)
        return _HostProgram(export(host, pytree.tree_map(_on_host, args), *more, **options))

    return exporting


@contextmanager
def pretended_device() -> Iterator[Counts]:
    """Make programs find an accelerator, the pretended one.

    Yields:
        [`Counts`] of what they do on it.

    Raises:
        AssertionError: at the end, if something was refused and caught.
    """
    device, counts = _register(), Counts()
    memory = {"allocated_bytes.all.peak": 0, "allocated_bytes.all.current": 0}
    accelerator = {
        "current_accelerator": lambda check_available=False: torch.device(NAME),
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device_index": lambda: 0,
        "synchronize": lambda device=None: counts.waits.update([_place()]),
        "get_memory_info": lambda device=None: (TOTAL_MEMORY, TOTAL_MEMORY),
        "memory_stats": lambda device=None: dict(memory),
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
    }
    swap = torch.__future__.get_swap_module_params_on_conversion()
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, function in accelerator.items():
            patch.setattr(torch.accelerator, name, function, raising=False)
        patch.setattr(torch, "Event", _Event)
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(torch.export, "export", _export(torch.export.export))
        patch.setattr(PartialState, "default_device", property(lambda self: device))
        patch.setattr(_Active, "counts", counts)
        PartialState._reset_state()
        AcceleratorState._reset_state()
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swap)
        stack.callback(PartialState._reset_state)
        stack.callback(AcceleratorState._reset_state)
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(_Functions())
        stack.enter_context(_Dispatch())
        yield counts
    assert not counts.mixed
