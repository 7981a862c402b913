"""The rest of a network: what a layout leaves out must be the base model's, or a row rebuilds no network that was."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from ..base_model import BaseModel
from ..layout import ParameterLayout
from ..weights import same_memory
from ..wrapped import fit_names, is_sharded, own_buffers, own_parameters, own_state

# Layers of batch norm change these in train mode, whether their parameters are frozen or not.
RUNNING_STATISTICS = ("running_mean", "running_var")


class StoredRest:
    """A weights file, without the tensors of a layout; one tensor is in memory at a time.

    Args:
        weights (`str` or `Path`): Safetensors file of a whole network, tied tensors once.
        layout ([`ParameterLayout`]): What is left out.
    """

    def __init__(self, weights: str | Path, layout: ParameterLayout):
        self._weights = weights
        with safe_open(weights, framework="pt") as file:
            self.names = set(file.keys()) - set(layout.names)

    def differences(self, state: Mapping[str, torch.Tensor], names: Collection[str]) -> dict[str, float]:
        """By how much the tensors `names` of a state dict differ from those of the file, the largest value of each.

        Counters, which are integers without a dimension, play no part; nor do names that the file does not have.

        Raises:
            ValueError: a tensor has another shape or type than in the file.
        """
        found: dict[str, float] = {}
        # Open only now: the pages of an open file count as memory of the process.
        with safe_open(self._weights, framework="pt") as file:
            for name in sorted(self.names.intersection(names)):
                expected, value = file.get_tensor(name), state[name].detach()
                if expected.dtype != value.dtype:
                    raise ValueError(
                        f"tensor {name!r}: expected dtype {expected.dtype}, found {value.dtype}; convert all to one "
                        "type."
                    )
                if expected.shape != value.shape:
                    raise ValueError(
                        f"tensor {name!r}: expected shape {tuple(expected.shape)}, found {tuple(value.shape)}; it "
                        "belongs to another architecture."
                    )
                if not (expected.is_floating_point() or expected.ndim):
                    continue
                if not torch.equal(expected, value := value.cpu()):
                    found[name] = (
                        (expected.to(torch.complex128) - value.to(torch.complex128)).abs().nan_to_num().max().item()
                    )
        return found


def describe_differences(differences: Mapping[str, float]) -> tuple[str, str]:
    """Name of the tensor that differs most, and in words by how much, and how many others do."""
    name = max(sorted(differences), key=differences.get)
    more = len(differences) - 1
    others = f", and {more} more {'tensors do' if more > 1 else 'tensor does'}" if more else ""
    return name, f"by up to {differences[name]:.3g}{others}"


class RestCheck:
    """Compares networks, checkpoint by checkpoint, with the base model, outside of a layout.

    Of a module, frozen parameters whose version has not changed are compared at the first, second, fourth, eighth …
    checkpoint and at the end; all else is compared every time, because neither batch norm nor fused optimisers count
    a version. Of a state dict, the tensors that it has are compared every time.

    Args:
        layout ([`ParameterLayout`]): What may change.
        base_model ([`BaseModel`]): How the network is rebuilt.
    """

    def __init__(self, layout: ParameterLayout, base_model: BaseModel):
        self._layout, self._base_model = layout, base_model
        self._stored: StoredRest | None = None
        self._count = 0
        self._model: weakref.ref[nn.Module] | None = None
        # Of frozen parameters as they were compared last: the tensor, its memory and its version.
        self._known: dict[str, tuple[weakref.ref[torch.Tensor], int, int]] = {}

    def check(self, state: nn.Module | Mapping[str, torch.Tensor]) -> None:
        """Compare the network of a checkpoint.

        Raises:
            ValueError: the base model, with the tensors of the layout put in, is another network.
        """
        self.compare(self.due(state))

    def due(self, state: nn.Module | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a checkpoint that have to be compared, now or as copies later, see [`~RestCheck.compare`].

        Raises:
            ValueError: names are missing, or there is nothing to compare with.
        """
        if self._base_model.weights is None:
            self._check_without_weights(state)
            return {}
        if self._stored is None:
            self._stored = StoredRest(self._base_model.checked_weights(), self._layout)
        is_module = isinstance(state, nn.Module)
        names = self._stored.names.union(self._layout.names)
        tensors = own_state(state) if is_module else fit_names(state, names)
        is_full = not is_module or self._count & (self._count + 1) == 0
        if is_full:
            self._check_names(tensors, is_module)
        rest = tensors.keys() - set(self._layout.names)
        due = self._of_rest(tensors, [name for name in rest if is_full or not self._is_known(name, tensors[name])])
        self._count += 1
        self._model = weakref.ref(state) if is_module else None
        self._known = {name: _mark(tensors[name]) for name in rest if is_module and _is_frozen(tensors[name])}
        return due

    def finish(self) -> None:
        """Compare once more what the last checkpoint was taken for unchanged in, as far as it is still there.

        Raises:
            ValueError: a tensor was changed without a new version, as through `tensor.data`.
        """
        model = None if self._model is None else self._model()
        # What was whole for a checkpoint may be in shards again.
        if model is not None and not is_sharded(model):
            tensors = own_state(model)
            self.compare(self._of_rest(tensors, [name for name in tensors if self._is_known(name, tensors[name])]))

    def _is_known(self, name: str, tensor: torch.Tensor) -> bool:
        if name not in self._known or not _is_frozen(tensor):
            return False
        reference, *mark = self._known[name]
        return reference() is tensor and mark == [tensor.data_ptr(), tensor._version]

    def _of_rest(self, tensors: Mapping[str, torch.Tensor], names: Collection[str]) -> dict[str, torch.Tensor]:
        """The tensors of these names that the file has, without other names of tensors of the layout."""
        own = {same_memory(tensors[name]) for name in self._layout.names} if names else set()
        stored = self._stored.names
        return {name: tensors[name] for name in names if name in stored and same_memory(tensors[name]) not in own}

    def compare(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Compare tensors of a checkpoint with the base model's.

        Raises:
            ValueError: one differs.
        """
        differences = self._stored.differences(tensors, tensors.keys()) if tensors else {}
        if not differences:
            return
        # Whoever goes on is told again.
        self._known = {}
        name, how = describe_differences(differences)
        if all(name.endswith(RUNNING_STATISTICS) for name in differences):
            advice = (
                "put these layers in eval mode (timm.utils.freeze_batch_norm_2d keeps them there), or record their "
                "statistics too (ParameterLayout.from_model(…, buffers=True))"
            )
        else:
            advice = (
                "freeze what is not recorded (ParameterLayout.freeze_rest), select all, or save the base weights anew "
                "when the rest is trained (BaseModel.save_weights)"
            )
        raise ValueError(
            f"tensor {name!r} is not in the layout, but differs from the base model's {how}: a row and the base model "
            f"would rebuild a network that never was; {advice}."
        )

    def _check_names(self, tensors: Mapping[str, torch.Tensor], is_module: bool) -> None:
        """Every tensor is in the file, or another name of one that is in the file or in the layout."""
        stored = self._stored.names
        if is_module and (missing := sorted(stored - tensors.keys())):
            raise ValueError(
                f"tensor {missing[0]!r}: expected it as in the base model's weights, found none in the network; "
                "record the network that the base model is."
            )
        named = stored | set(self._layout.names)
        memory = {same_memory(tensors[name]) for name in named & tensors.keys()}
        for name in sorted(tensors.keys() - named):
            value = tensors[name]
            if same_memory(value) in memory:
                continue
            # Of a copied state dict, tied tensors are no longer the same memory.
            if is_module or not any(torch.equal(value, tensors[other]) for other in named & tensors.keys()):
                raise ValueError(
                    f"tensor {name!r}: expected it in the base model's weights or tied to one of them, found neither; "
                    "record the network that the base model is, or save its weights anew (BaseModel.save_weights)."
                )

    def _check_without_weights(self, state: nn.Module | Mapping[str, torch.Tensor]) -> None:
        """Without weights, the rest would be new and random: only what a layer starts with anyway may be left out."""
        if not isinstance(state, nn.Module):
            return
        left_out = [
            *own_parameters(state),
            *(name for name in own_buffers(state) if name.endswith(RUNNING_STATISTICS)),
        ]
        if left_out := [name for name in left_out if name not in self._layout.names]:
            raise ValueError(
                f"tensor {left_out[0]!r} is not in the layout, and the base model has no weights to rebuild it from; "
                "give it the network's (base_model.save_weights(model, folder)), or select all (with buffers=True "
                "where layers have running statistics)."
            )


def _is_frozen(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad and not tensor.is_inference()


def _mark(tensor: torch.Tensor) -> tuple[weakref.ref[torch.Tensor], int, int]:
    return weakref.ref(tensor), tensor.data_ptr(), tensor._version
