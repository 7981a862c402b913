"""Which merge is best for these adapters: means of what they do, and peft's combinations, checked and compared."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...adapters.folder import write_adapter
from ...adapters.gauge import lora_pairs
from ...adapters.probe import outputs_of, probe_inputs
from ...base_model import BaseModel
from ...data.vectors import Vectors
from ...layout import ParameterLayout
from ...peft_model import ADAPTER, lora_layers
from .factors import concatenated_state, delta_error, mean_delta_svd, mean_factors
from .peft_merges import COMBINATIONS, DENSITIES, PeftMerger, bare_base, merge_as_it_is, reload, weights_of

EXACT = "mean_delta_exact"
# Adapters that are merged, evenly spread over all: peft takes ever longer for each that it holds, and the exact mean
# has the sum of their ranks.
MAX_ADAPTERS = 64
# Random ones, by which outputs are compared.
NUM_INPUTS = 2
# Of the spread of the outputs: one adapter, merged, gives its own outputs up to rounding.
TOLERANCE = 1e-3

Worth = Callable[[Vectors], torch.Tensor]


@dataclass
class AdapterMerge:
    """A merge of adapters.

    Args:
        row (`torch.Tensor` of shape `(1, D)`, *optional*): It, where it has the adapters' rank.
        rank (`int`): Its rank.
        seconds (`float`): What making it took.
        chosen (`dict`): What was chosen on the validation examples.
        identity_error (`float`, *optional*): By how much of their spread the outputs of one adapter change when it is
            merged alone, and when it is merged with its own copy.
        identity_error_as_is (`float`, *optional*): The same of peft's own `add_weighted_adapter` on the adapter with
            its head, scaling and magnitudes.
        delta_error (`float`, *optional*): Relative error of BA against the exact mean.
        reload_error (`float`, *optional*): By how much of their spread its outputs change when peft loads it from the
            folder that it was written to.
        note (`str`, *optional*): Why there is none, or why peft alone does not give it.
    """

    row: torch.Tensor | None = None
    rank: int | None = None
    seconds: float = 0.0
    chosen: dict[str, Any] = field(default_factory=dict)
    identity_error: float | None = None
    identity_error_as_is: float | None = None
    delta_error: float | None = None
    reload_error: float | None = None
    note: str | None = None


class AdapterMerger:
    """Merges the adapters of a dataset in every way, and checks each.

    Args:
        base_model ([`BaseModel`]): With an adapter.
        layout ([`ParameterLayout`]): Of the rows.
        rows (`Vectors` of shape `(n, D)`): The adapters; [`MAX_ADAPTERS`] of them are merged.
        worth (`Callable`, *optional*): What rows `(n, D)` are worth `(n,)` on the validation examples; without it,
            densities and weights are the first ones.
        seed (`int`, *optional*, defaults to 0): Of DARE's draws.
    """

    def __init__(
        self, base_model: BaseModel, layout: ParameterLayout, rows: Vectors, worth: Worth | None = None, seed: int = 0
    ):
        self._base_model, self._layout, self._worth, self._seed = base_model, layout, worth, seed
        numbers = torch.linspace(0, len(rows) - 1, min(len(rows), MAX_ADAPTERS)).round().long()
        self.rows = rows[numbers].cpu()
        self._model = base_model.build()
        self._base = bare_base(self._model)
        inputs = probe_inputs(self._model)
        self._inputs = None if inputs is None else inputs[:NUM_INPUTS]
        layers = lora_layers(self._model)
        # One configuration without patterns for all layers.
        self._scaling = layers[lora_pairs(layout)[0].layer].scaling[ADAPTER]
        self.rank = base_model.adapter["r"]
        self.exact: nn.Module | None = None

    @torch.no_grad()
    def merge_all(self) -> dict[str, AdapterMerge]:
        """All merges by name; [`EXACT`] has no row, and is the network `exact` instead."""
        # peft initialises whatever is loaded afterwards.
        with torch.random.fork_rng([]):
            return self._merge_all()

    def _merge_all(self) -> dict[str, AdapterMerge]:
        found = {EXACT: self._exact()}
        for name, make in (("mean_delta_svd", mean_delta_svd), ("mean_factors", mean_factors)):
            begin = time.perf_counter()
            row = make(self._layout, self.rows)
            merge = AdapterMerge(row, self.rank, time.perf_counter() - begin)
            merge.identity_error = self._identity_error(make(self._layout, self.rows[:1]))
            found[name] = merge
        found |= self._combinations()
        for merge in found.values():
            if merge.row is not None:
                merge.delta_error = delta_error(self._layout, merge.row, self.rows)
                merge.reload_error = self._reload_error(merge.row)
        return found

    def _exact(self) -> AdapterMerge:
        """The exact mean as an adapter of the rank n·r, loaded by peft, beside the base with the mean added to it."""
        begin = time.perf_counter()
        given = self._base_model.adapter, self._scaling
        merge = AdapterMerge(rank=len(self.rows) * self.rank, delta_error=0.0)
        self.exact = self._loaded(*concatenated_state(self._layout, self.rows, *given))
        merge.seconds = time.perf_counter() - begin
        one = self._loaded(*concatenated_state(self._layout, self.rows[:1], *given))
        merge.identity_error = self._compare(one, self._with(self.rows[:1]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                merged = copy.deepcopy(self.exact).merge_and_unload()
            except NotImplementedError:
                merge.note = "of grouped convolutions it cannot be merged into the base"
            else:
                merge.reload_error = self._compare(self.exact, merged)
        return merge

    def _combinations(self) -> dict[str, AdapterMerge]:
        as_is, why = self._as_it_is()
        found = {name: AdapterMerge(rank=self.rank, identity_error_as_is=as_is, note=why) for name in COMBINATIONS}
        self._find_identity_errors(found)
        begin = time.perf_counter()
        merger = PeftMerger(self._model, self._layout, self.rows)
        loading = time.perf_counter() - begin
        for combination, merge in found.items():
            if merge.note is None or merge.note == why:
                begin = time.perf_counter()
                merge.row, merge.chosen = self._best(merger, combination)
                merge.seconds = loading + time.perf_counter() - begin
        return {f"peft_{combination}": merge for combination, merge in found.items()}

    def _find_identity_errors(self, found: Mapping[str, AdapterMerge]) -> None:
        """One adapter has to give itself, also when it is merged with its copy: of one alone, peft takes `linear`."""
        one = self.rows[:1]
        merger = PeftMerger(self._model, self._layout, one.expand(2, -1))
        for combination, merge in found.items():
            try:
                merged = [merger.merge(combination, 1.0, 1.0, num=1)]
                merged.append(merger.merge(combination, weights_of(combination, 2)[0], 1.0))
            except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
                merge.note = f"peft does not merge these layers so: {_first_line(error)}"
                continue
            if self._inputs is not None:
                merge.identity_error = max(self._identity_error(row) for row in merged)
                if not merge.identity_error <= TOLERANCE:
                    merge.note = f"one adapter, merged, does not give itself, off by {merge.identity_error:.2g}"

    def _best(self, merger: PeftMerger, combination: str) -> tuple[torch.Tensor, dict[str, float]]:
        """Of weights and densities those that are worth most on the validation examples; ties: the first."""
        tried, (has_density, _) = [], COMBINATIONS[combination]
        for density in DENSITIES if has_density else (None,):
            for weight in weights_of(combination, len(self.rows)):
                row = merger.merge(combination, weight, density, seed=self._seed)
                tried.append((row, {"weight": weight} | ({} if density is None else {"density": density})))
                if self._worth is None:
                    return tried[0]
        values = self._worth(torch.cat([row for row, _ in tried])).double().nan_to_num(nan=-torch.inf)
        return tried[int((values == values.max()).nonzero()[0])]

    def _as_it_is(self) -> tuple[float | None, str | None]:
        """What peft alone makes of one adapter, and why that is another one."""
        try:
            merged = merge_as_it_is(self._with(self.rows[:1]))
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
            return None, f"peft alone refuses these adapters: {_first_line(error)}"
        error = self._compare(merged, self._with(self.rows[:1]))
        if error is None or error <= TOLERANCE:
            return error, None
        config = self._base_model.adapter
        causes = {
            "its head is lost": bool(config.get("modules_to_save")),
            "rslora's scaling is taken twice": bool(config.get("use_rslora")),
            "DoRA's magnitudes are not merged": bool(config.get("use_dora")),
            "biases of B are not merged": bool(config.get("lora_bias")),
        }
        causes = " and ".join(cause for cause, is_so in causes.items() if is_so)
        return error, f"peft alone changes one adapter: {causes or 'the cause is not known'}; what is lost is averaged"

    def _with(self, row: torch.Tensor) -> nn.Module:
        """The network with a row `(1, D)` in it, until it gets another one."""
        self._layout.load_into(self._model, row[0])
        return self._model

    def _identity_error(self, row: torch.Tensor) -> float | None:
        """By how much of their spread the outputs of a row `(1, D)` differ from those of the first adapter at most."""
        if self._inputs is None:
            return None
        expected = self._own_outputs
        return _relative(outputs_of(self._with(row), self._inputs), expected)

    @cached_property
    def _own_outputs(self) -> torch.Tensor:
        return outputs_of(self._with(self.rows[:1]), self._inputs)

    def _compare(self, model: nn.Module, expected: nn.Module) -> float | None:
        """The same of two networks, which are not the same object."""
        if self._inputs is None:
            return None
        return _relative(outputs_of(model, self._inputs), outputs_of(expected, self._inputs))

    def _reload_error(self, row: torch.Tensor) -> float | None:
        state = self._layout.unflatten(row[0])
        return self._compare(self._loaded(state, self._base_model.adapter), self._with(row))

    def _loaded(self, state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> nn.Module:
        """What plain peft loads of an adapter that was written."""
        with tempfile.TemporaryDirectory() as folder:
            constants = self._base_model.adapter_constants(self._layout.names)
            write_adapter(Path(folder), config, state, constants)
            return reload(self._base, folder)


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.std().clamp_min(1e-12)).item()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
