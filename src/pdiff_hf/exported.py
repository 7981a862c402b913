"""Graphs of `torch.export` for batches of any size, without tensors: one for networks that differ in values only."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import operator
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from .disk_cache import keep_text, kept_text
from .structure import TORCH_VALUES, hash_of_structure

aten = torch.ops.aten
# What is computed of tensors; the rest is arithmetic of sizes.
OPERATIONS = (torch._ops.OpOverload, torch._ops.HigherOrderOperator)

# Graphs that are kept, those used last: each is of one network and input.
MAX_IN_MEMORY = 16
# `x[:]` is noted as a slice to here where the size is not known, and as an alias where it is.
END = 2**63 - 1
UPPER_LIMIT = re.compile(r"L\['\w+'\]\.size\(\)\[0\] <= \d+")


@dataclass(frozen=True, eq=False)
class ExportedForward:
    """The functionalised graph of a forward pass, in-place operations gone.

    Of nodes with a tensor, `meta["bytes"]` is its size: a number that is always there, and one for every example.

    Args:
        graph (`torch.fx.Graph`): Takes the tensors named by `inputs`, and gives the logits.
        inputs (`dict[str, str]`): By the name of a placeholder that of the model's tensor, empty for the inputs.
        batch_sizes (`range`): Those it is for.
        root (`nn.Module`, *optional*): What the graph's nodes call by name; nothing by default.
        constants (`dict[str, torch.Tensor]`, *optional*): Tensors that are the program's own, by names in `inputs`.
    """

    graph: Graph
    inputs: dict[str, str]
    batch_sizes: range
    root: nn.Module = field(default_factory=nn.Module)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)

    def at(self, batch_size: int) -> GraphModule:
        """The graph that `torch.export` gives for batches of this size alone; no nodes are shared."""
        graph, known = Graph(), {}
        for node in self.graph.nodes:
            sources = node.all_input_nodes
            is_number = bool(sources) and not any(isinstance(known[source], Node) for source in sources)
            if node.target is aten.sym_size.int and self.inputs.get(node.args[0].name) == "" and node.args[1] == 0:
                known[node] = batch_size
            elif is_number and not isinstance(node.target, OPERATIONS):
                known[node] = node.target(*map_arg(node.args, known.__getitem__))
            elif node.target is aten.alias.default or (node.target is aten.slice.Tensor and node.args[2:] == (0, END)):
                known[node] = known[node.args[0]]
            else:
                known[node] = graph.node_copy(node, known.__getitem__)
                if "bytes" in node.meta:
                    fixed, each = node.meta["bytes"]
                    known[node].meta = {"bytes": fixed + each * batch_size}
        return GraphModule(self.root, graph)


def export_forward(full: nn.Module, inputs: torch.Tensor, table: Mapping[Any, Callable]) -> ExportedForward:
    """Export a forward pass, once for all networks of the same structure and inputs of the same shape.

    Args:
        full (`nn.Module`): Takes the inputs, and returns one tensor.
        inputs (`torch.Tensor` of shape `(N, …)`): A batch.
        table (`Mapping`): Decompositions of operations, the same in every call.

    Raises:
        RuntimeError: the model writes to its own state in eval mode; torch passes on what the model's code raises.
    """
    key = hash_of_structure(full, inputs)
    if key is None:
        return _export(full, inputs, table, dynamic=False)
    size = len(inputs)
    for exported in itertools.chain(_IN_MEMORY.get(key, ()), _read(key)):
        if size in exported.batch_sizes:
            _keep(key, exported)
            return exported
    try:
        if size == 1:
            raise _OneSizeError
        exported = _export(full, inputs, table, dynamic=True)
    except Exception:  # whatever the model's own code raises where the size is not a number
        exported = _export(full, inputs, table, dynamic=False)
    if not exported.constants and not any(node.op == "get_attr" for node in exported.graph.nodes):
        _keep(key, exported)
        _write(key, exported)
    return exported


class _OneSizeError(Exception):
    """A graph is for one batch size only."""


def _export(full: nn.Module, inputs: torch.Tensor, table: Mapping[Any, Callable], dynamic: bool) -> ExportedForward:
    with torch.no_grad(), warnings.catch_warnings():
        # Hooks that compute a weight before every forward pass assign it to their layer.
        warnings.filterwarnings("ignore", "The tensor attribute .* was assigned during export")
        program = torch.export.export(full, (inputs,), dynamic_shapes=({0: Dim.AUTO},) if dynamic else None)
        sizes = _sizes_of(program) if dynamic else range(len(inputs), len(inputs) + 1)
        program = program.run_decompositions(dict(table))
    if [spec.kind for spec in program.graph_signature.output_specs] != [OutputKind.USER_OUTPUT]:
        raise RuntimeError("the model writes to its own buffers in eval mode or returns more than logits")

    # 1. What the placeholders are
    state = {*dict(full.named_parameters(remove_duplicate=False)), *dict(full.named_buffers(remove_duplicate=False))}
    sources, constants = {}, {}
    for spec in program.graph_signature.input_specs:
        sources[spec.arg.name] = "" if spec.kind is InputKind.USER_INPUT else spec.target
        if spec.target is not None and spec.target not in state:
            constants[spec.target] = program.constants[spec.target]

    # 2. The graph, with sizes in place of values
    graph, known, symbolic = Graph(), {}, set()
    for node in program.graph.nodes:
        value = node.meta.get("val")
        known[node] = graph.node_copy(node, known.__getitem__)
        known[node].meta = {}
        if isinstance(value, torch.Tensor):
            num_bytes = value.numel() * value.element_size()
            is_batch = isinstance(num_bytes, torch.SymInt)
            known[node].meta["bytes"] = (0, int(num_bytes) // len(inputs)) if is_batch else (num_bytes, 0)
        elif isinstance(value, (torch.SymInt, torch.SymBool, torch.SymFloat)):
            symbolic.add(node.name)
    root = program.graph_module if any(node.op == "get_attr" for node in graph.nodes) else nn.Module()
    exported = ExportedForward(graph, sources, sizes, root, constants)
    if symbolic.intersection(node.name for node in exported.at(len(inputs)).graph.nodes):
        raise _OneSizeError
    return exported


def _sizes_of(program: ExportedProgram) -> range:
    """The batch sizes for which a graph holds, from 2 on: where nothing else was decided by that of its own batch."""
    ranges, guards = list(program.range_constraints.values()), vars(program).get("_guards_code", ["unknown"])
    # Upper limits, as normalisation has them on CUDA, are part of the range.
    if len(ranges) != 1 or ranges[0].lower > 2 or not all(map(UPPER_LIMIT.fullmatch, guards)):
        raise _OneSizeError
    return range(2, 1 + (int(ranges[0].upper) if ranges[0].upper < END else END - 1))


# In memory, by structure.
_IN_MEMORY: OrderedDict[str, list[ExportedForward]] = OrderedDict()


def _keep(key: str, exported: ExportedForward) -> None:
    entries = _IN_MEMORY.setdefault(key, [])
    if exported not in entries:
        entries.append(exported)
    _IN_MEMORY.move_to_end(key)
    while len(_IN_MEMORY) > MAX_IN_MEMORY:
        _IN_MEMORY.popitem(last=False)


def _write(key: str, exported: ExportedForward) -> None:
    """Keep a graph on disk, if it is for many batch sizes and consists of operations of torch's own."""
    if len(exported.batch_sizes) > 1:
        try:
            keep_text(_file_name(key), encode(exported))
        except ValueError:
            return


def _read(key: str) -> Iterator[ExportedForward]:
    if (text := kept_text(_file_name(key))) is not None:
        yield decode(text)


@functools.cache
def _own_code() -> str:
    """Hash of the code of this package that makes graphs."""
    files = [Path(__file__), Path(__file__).with_name("forward.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _file_name(key: str) -> str:
    return hashlib.sha256(f"{key} {_own_code()}".encode()).hexdigest()[:32] + ".json"


def encode(exported: ExportedForward) -> str:
    """A graph as JSON; `ValueError` for one with other operations than `torch.ops.aten` and Python's `operator`."""
    nodes = [
        {
            "op": node.op,
            "name": node.name,
            "target": _name_of(node.target) if node.op == "call_function" else node.target,
            "args": _encode(node.args),
            "kwargs": {name: _encode(value) for name, value in node.kwargs.items()},
            "bytes": node.meta.get("bytes"),
        }
        for node in exported.graph.nodes
    ]
    sizes = [exported.batch_sizes.start, exported.batch_sizes.stop]
    return json.dumps({"nodes": nodes, "inputs": exported.inputs, "batch_sizes": sizes}, separators=(",", ":"))


def decode(text: str) -> ExportedForward:
    """The graph of [`encode`]."""
    values, graph, known = json.loads(text), Graph(), {}
    for node in values["nodes"]:
        target = _target_of(node["target"]) if node["op"] == "call_function" else node["target"]
        kwargs = {name: _decode(value, known) for name, value in node["kwargs"].items()}
        made = graph.create_node(node["op"], target, _decode(node["args"], known), kwargs, node["name"])
        known[node["name"]] = made
        if node["bytes"] is not None:
            made.meta["bytes"] = tuple(node["bytes"])
    return ExportedForward(graph, values["inputs"], range(*values["batch_sizes"]))


def _name_of(target: Callable) -> str:
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return str(target)
    if vars(operator).get(target.__name__) is target:
        return f"operator.{target.__name__}"
    raise ValueError(f"expected an operation of aten, found {target}")


def _target_of(name: str) -> Callable:
    library, _, names = name.partition(".")
    return operator.attrgetter(names)({"aten": aten, "operator": operator}[library])


def _encode(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, TORCH_VALUES):
        return {"torch": str(value).removeprefix("torch.")}
    raise ValueError(f"expected an argument of aten, found {value!r}")


def _decode(value: Any, known: Mapping[str, Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, known) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tuple":
        return tuple(_decode(item, known) for item in inner)
    return {"node": known.__getitem__, "device": torch.device, "torch": vars(torch).__getitem__}[kind](inner)
