"""Selection of the generated tensors, and the place of each in the flat vector."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from .files import errors_of
from .host_copy import copy_values
from .peft_model import gauged_names
from .selection import DTYPES, check_values, select_tensors
from .wrapped import fit_names, own_modules, own_parameters, own_state, plain_name

SCHEMA = 1

TRANSFORMS = ("identity", "log", "canonical_lora")


@dataclass(frozen=True)
class TensorSpec:
    """One generated tensor.

    Args:
        name (`str`): Key in the state dict.
        shape (`tuple[int, ...]`): Its shape, `()` for a scalar.
        offset (`int`): Position of its first value in the vector.
        dtype (`str`): `"float32"`, `"float16"` or `"bfloat16"`.
        transform (`str`): `"identity"`; `"log"`: the autoencoder's normaliser works on the logarithm; or
            `"canonical_lora"`: a factor of LoRA, whose rows are recorded in canonical form, see `adapters.gauge`.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    dtype: str = "float32"
    transform: str = "identity"

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor, offset: int) -> TensorSpec:
        """That of a tensor of a network."""
        # A variance is positive, and varies by factors.
        transform = "log" if name.rpartition(".")[2] == "running_var" else "identity"
        return cls(name, tuple(tensor.shape), offset, str(tensor.dtype).removeprefix("torch."), transform)

    @property
    def numel(self) -> int:
        """Number of values."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class ParameterLayout:
    """Ordered list of the generated tensors; maps a state dict to a flat float32 vector of D values and back.

    Values are copied, never transformed: a round trip of float32, float16 and bfloat16 tensors is exact to the bit.

    Args:
        tensors (`tuple[TensorSpec, ...]`): In the order of the vector, without gaps.
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self):
        if not self.tensors:
            raise ValueError("a layout needs at least one tensor.")
        offset, seen = 0, set()
        for spec in self.tensors:
            if spec.name in seen:
                raise ValueError(f"layout names tensor {spec.name!r} twice.")
            if (name := plain_name(spec.name)) != spec.name:
                raise ValueError(
                    f"layout: tensor {spec.name!r} has the name that a wrapper such as torch.compile gives to "
                    f"{name!r}; record or import again: names are the network's own now."
                )
            if min(spec.shape, default=0) < 0:
                raise ValueError(f"layout: tensor {spec.name!r} has the impossible shape {spec.shape}.")
            if spec.offset != offset:
                raise ValueError(f"layout: tensor {spec.name!r} should start at {offset}, found offset {spec.offset}.")
            if spec.dtype not in DTYPES:
                raise ValueError(
                    f"layout: tensor {spec.name!r} has dtype {spec.dtype}, expected one of {sorted(DTYPES)}."
                )
            if spec.transform not in TRANSFORMS:
                raise ValueError(
                    f"layout: tensor {spec.name!r} has transform {spec.transform!r}, expected one of {TRANSFORMS}."
                )
            seen.add(spec.name)
            offset += spec.numel
        if not offset:
            raise ValueError(f"a layout needs at least one value, found none in {', '.join(seen)}.")

    @property
    def num_parameters(self) -> int:
        """Length D of a vector."""
        return self.tensors[-1].offset + self.tensors[-1].numel

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors in order."""
        return tuple(spec.name for spec in self.tensors)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the tensors' names, shapes, order, types and transforms."""
        text = json.dumps([asdict(spec) for spec in self.tensors], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    # Construction

    @classmethod
    def from_model(
        cls, model: nn.Module, select: str | Sequence[str] = "all", buffers: bool = False
    ) -> ParameterLayout:
        """Select tensors of a model.

        Args:
            model (`nn.Module`):
                Any module; names are the network's own, whatever wraps it (`torch.compile`, `DataParallel`, …).
                Whether a parameter is frozen plays no part; tied parameters are taken once, under their first name.
            select (`str` or `Sequence[str]`, *optional*, defaults to `"all"`):
                `"all"`; `"last_norms:K"` for the parameters of the last K normalisation layers; `"head"` for the
                classifier; `"adapter"` for that of a `PeftModel`, with the heads saved beside it; or one or several
                globs on parameter names. Integer parameters are never selected.
            buffers (`bool`, *optional*, defaults to `False`):
                Adds the floating-point buffers (BatchNorm statistics) of the modules whose parameters are selected, of
                all modules for `"all"`; `running_var` with the transform `"log"`. Counters are never selected.

        Raises:
            ValueError: nothing is selected, a pattern matches nothing, or a tensor cannot be generated: it is float64,
                complex, of a lazy layer, quantized, sparse, or shares its memory with another one.
        """
        specs, offset = [], 0
        tensors = select_tensors(model, select, buffers)
        for name, tensor in tensors.items():
            specs.append(TensorSpec.of(name, tensor, offset))
            offset += tensor.numel()
        # In half precision, factors in another frame would be rounded anew.
        exact = {name for name, tensor in tensors.items() if tensor.dtype is torch.float32}
        pairs = _gauged_pairs(gauged_names(model) & exact)
        return cls(tuple(replace(s, transform="canonical_lora") if s.name in pairs else s for s in specs))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form: `schema`, `num_parameters`, `fingerprint` and `tensors`."""
        return {
            "schema": SCHEMA,
            "num_parameters": self.num_parameters,
            "fingerprint": self.fingerprint,
            "tensors": [{**asdict(spec), "shape": list(spec.shape)} for spec in self.tensors],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ParameterLayout:
        """Read `to_dict()` back.

        Raises:
            ValueError: another schema, missing keys, or contents that do not match the fingerprint.
        """
        with errors_of("layout: malformed or incomplete", KeyError, TypeError):
            schema, expected = values["schema"], (values["fingerprint"], values["num_parameters"])
            types = {"name": str, "shape": lambda s: tuple(map(int, s)), "offset": int, "dtype": str, "transform": str}
            specs = tuple(TensorSpec(**{key: read(t[key]) for key, read in types.items()}) for t in values["tensors"])
        if schema != SCHEMA:
            raise ValueError(f"layout: expected schema {SCHEMA}, found {schema!r}; update pdiff_hf.")
        layout = cls(specs)
        if expected != (layout.fingerprint, layout.num_parameters):
            raise ValueError(
                f"layout: the tensors have fingerprint {layout.fingerprint[:12]} and {layout.num_parameters} values, "
                f"the file says {str(expected[0])[:12]} and {expected[1]}; it was edited or damaged."
            )
        return layout

    # State dict ↔ vector

    def check(self, state: nn.Module | Mapping[str, torch.Tensor]) -> None:
        """Raise `ValueError` naming the first tensor of `state` that is missing or has another shape or type."""
        self._own(state)

    def tensors_of(self, state: nn.Module | Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """The tensors of a module or state dict in the order of the vector, after [`~ParameterLayout.check`]."""
        tensors = self._own(state)
        return [tensors[spec.name] for spec in self.tensors]

    def _own(self, state: nn.Module | Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The tensors of a state by the network's own names, after [`~ParameterLayout.check`]."""
        tensors = own_state(state) if isinstance(state, nn.Module) else fit_names(state, self.names)
        for spec in self.tensors:
            if spec.name not in tensors:
                names = ", ".join(list(tensors)[:3]) or "none at all"
                raise ValueError(
                    f"tensor {spec.name!r}: expected shape {spec.shape}, found no such tensor, but {names}."
                )
            found = tensors[spec.name]
            check_values(spec.name, found)
            if tuple(found.shape) != spec.shape:
                raise ValueError(f"tensor {spec.name!r}: expected shape {spec.shape}, found {tuple(found.shape)}.")
            if found.dtype != DTYPES[spec.dtype]:
                raise ValueError(f"tensor {spec.name!r}: expected dtype {spec.dtype}, found {found.dtype}.")
        return tensors

    def flatten(self, state: nn.Module | Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Copy the tensors of a module or state dict into a new float32 vector `(D,)` on the CPU, from a GPU at once.

        Raises:
            ValueError: `state` does not fit the layout.
        """
        vector = torch.empty(self.num_parameters)
        copy_values(self.tensors_of(state), vector)
        return vector

    def unflatten(self, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Split `(D,)` into tensors of their shapes, or `(B, D)` into `(B, *shape)`; float32 tensors are views.

        Raises:
            ValueError: the last dimension is not D.
        """
        if vectors.ndim not in (1, 2) or vectors.shape[-1] != self.num_parameters:
            raise ValueError(
                f"expected a vector of shape ({self.num_parameters},) or (B, {self.num_parameters}), "
                f"got {tuple(vectors.shape)}."
            )
        # Slices one by one would each have a gradient of the whole size.
        parts = zip(self.tensors, vectors.split([spec.numel for spec in self.tensors], -1), strict=True)
        return {
            spec.name: part.reshape((*vectors.shape[:-1], *spec.shape)).to(DTYPES[spec.dtype]) for spec, part in parts
        }

    @torch.no_grad()
    def load_into(self, model: nn.Module, vector: torch.Tensor) -> None:
        """Copy a vector `(D,)` into the model's tensors in place; everything else stays as it is.

        Raises:
            ValueError: the model or the vector does not fit the layout.
        """
        tensors = self._own(model)
        for name, value in self.unflatten(vector).items():
            tensors[name].copy_(value)

    @property
    def followed_modules(self) -> frozenset[str]:
        """Names of the norm layers whose running statistics are generated, and so follow the data in training."""
        running = (".running_mean", ".running_var")
        return frozenset(name.rpartition(".")[0] for name in self.names if name.endswith(running))

    def freeze_rest(self, model: nn.Module) -> None:
        """Make a model ready for training of these tensors alone.

        All other parameters are frozen. The model is put in eval mode, where neither dropout nor running statistics
        play a part, but for norm layers whose running statistics are in the layout.
        """
        for name, parameter in own_parameters(model).items():
            parameter.requires_grad_(name in self.names)
        model.eval()
        for name, module in own_modules(model):
            if name in self.followed_modules:
                module.train()

    def locate(self, index: int) -> str:
        """Name of the tensor that holds position `index` of the vector."""
        return next(spec.name for spec in self.tensors if index < spec.offset + spec.numel)


def _gauged_pairs(names: set[str]) -> set[str]:
    """Those names of factors whose other factor is among them as well: a constant one leaves no gauge."""
    other = {"A": "B", "B": "A"}
    return {
        n
        for n in names
        if re.sub(r"(?<=\.lora_)((?:embedding_)?)([AB])(?=\.)", lambda m: m[1] + other[m[2]], n) in names
    }
