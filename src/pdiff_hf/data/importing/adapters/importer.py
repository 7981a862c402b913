"""A parameter dataset of PEFT adapters: one row each, in canonical form, with one configuration for all."""

from __future__ import annotations

import glob
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ....adapters.config import AdapterConfig
from ....adapters.gauge import canonical_rows, lora_pairs, mean_adapter, num_averaged
from ....adapters.network import AdapterTensors, add_adapter, require_peft, tensors_of_config
from ....adapters.probe import NUM_PROBED, adapter_effects
from ....adapters.signal import GaugeSignal
from ....base_model import WEIGHTS, BaseModel
from ....conditions import ConditionSpec
from ....files import atomic_folder, check_new, errors_of
from ....layout import ParameterLayout
from ....wrapped import own_state
from ...conditions import Embed
from ...writer import stream_parameter_dataset
from ..checkpoint import Checkpoint, compile_pattern, metric_columns, read_pattern
from ..conditions import take_conditions
from .base import AdapterBase, open_base
from .headers import PREFIX, check_header, header_of
from .older_names import newer_names, renamed_config
from .rows import RowWriter, Source, common_config
from .sources import find_adapters, read_config_of
from .tensors import check_finite, fitted, plain_names, read_tensors

# Rows are made and written together, of so many bytes at most.
BATCH, BATCH_BYTES = 32, 2**24


class _NotConstantError(Exception):
    """A factor that the first adapters share is another one in a later one."""


def import_adapters(
    sources: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    base: str,
    *,
    kwargs: Mapping[str, Any] | None = None,
    keep_scaling: bool = False,
    any_base_name: bool = False,
    metrics_pattern: str | None = None,
    progress: bool = True,
    describe_task: Callable[[BaseModel, ParameterLayout], Mapping[str, Any]] | None = None,
    conditions: str | Path | Mapping[str, Any] | None = None,
    condition_spec: ConditionSpec | None = None,
    embed: Embed | None = None,
) -> dict[str, Any]:
    r"""Writes a parameter dataset with one row for each adapter that it finds.

    Scalings are what peft's own layers say, and go into the factors B; factors are canonical, see `adapters.gauge`.
    Heads that were saved beside adapters are part of the rows; constants, such as VeRA's shared matrices or one A of
    all, are compared and kept once, in the base model's weights.

    Args:
        sources (`str`, `Path` or a sequence of them):
            Folders of adapters or of such folders, `user/name` on the Hub, text files that list them.
        output_dir (`str` or `Path`):
            Folder of the parameter dataset, new or empty; it appears when it is complete.
        base (`str`):
            The network that they are for: a folder of transformers or timm, `"timm:NAME"`, or `user/name`. Nothing in
            an adapter says which weights it was trained on: this does.
        kwargs (`Mapping`, *optional*):
            Arguments of the builder of a base that is named by its library.
        keep_scaling (`bool`, *optional*, defaults to `False`):
            Whether scalings and ranks stay as they are, and then have to be equal.
        any_base_name (`bool`, *optional*, defaults to `False`):
            Whether adapters may name different bases.
        metrics_pattern, progress, describe_task, conditions, condition_spec, embed:
            As of [`import_checkpoints`].

    Returns:
        `dict[str, Any]`: `num_checkpoints`, `num_parameters`, `runs`, `metrics`; `num_copies`, the rows that are those
        of an earlier one up to rounding; `base_sha256`; `effects`, by how much of their spread the first adapters move
        the base's outputs; and `notes`, a line each.

    Raises:
        ValueError: an adapter is damaged, has tensors that its configuration does not build or lacks some, is none
            that can be brought into rows, or is not like the others. Nothing is left behind then.
    """
    output_dir = Path(output_dir)
    check_new(output_dir, "the dataset")
    checkpoints = find_adapters(sources)
    if metrics_pattern is not None:
        pattern = compile_pattern(metrics_pattern)
        checkpoints = [read_pattern(checkpoint, pattern) for checkpoint in checkpoints]
    configs = [read_config_of(checkpoint) for checkpoint in checkpoints]
    notes = _notes(checkpoints, configs, any_base_name)
    if conditions is not None:
        checkpoints, condition_spec, how = take_conditions(checkpoints, conditions, condition_spec, embed)
        notes.append(f"Conditions, {how}: {condition_spec.summary}.")
    require_peft()
    collection = _Collection(checkpoints, configs, base, kwargs or {}, keep_scaling)
    columns = metric_columns(checkpoints)
    told = {"base": collection.base.name, "base_sha256": collection.base.sha256, "keep_scaling": keep_scaling}
    names = {config.base_name for config in configs}
    told["base_names"] = sorted(name for name in names if name is not None)
    told["rows"] = [{"source": c.source, "revision": c.revision} for c in checkpoints]
    for constants in collection.constant_factors():
        try:
            with atomic_folder(output_dir) as folder:
                base_model, layout = collection.write_base(folder, constants)
                task = None if describe_task is None else describe_task(base_model, layout)
                rows = _Rows(collection, layout, columns, progress, told)
                stream_parameter_dataset(
                    rows.batches(),
                    layout,
                    folder,
                    base_model,
                    {"import": told} | ({} if task is None else {"task": dict(task)}),
                    conditions=condition_spec,
                    embed=embed,
                    unordered_runs={c.run for c in checkpoints if c.step is None},
                )
                effects = adapter_effects(collection.model, layout, rows.first)
            break
        except _NotConstantError:
            continue
    if constants:
        notes.append(f"One A for all, as LoRA-FA trains them: {len(constants)} tensors are kept once.")
    if rows.num_copies:
        copies = f"{rows.num_copies} of {len(checkpoints)} adapters are those of earlier ones, up to the gauge"
        warnings.warn(f"{copies}; they are kept.", stacklevel=2)
    return {
        "num_checkpoints": len(checkpoints),
        "num_parameters": layout.num_parameters,
        "runs": list(dict.fromkeys(checkpoint.run for checkpoint in checkpoints)),
        "metrics": columns,
        "num_copies": rows.num_copies,
        "base_sha256": collection.base.sha256,
        "effects": effects,
        "notes": notes + collection.notes,
    }


def _notes(checkpoints: Sequence[Checkpoint], configs: Sequence[AdapterConfig], any_base_name: bool) -> list[str]:
    """What is to be said about configurations, and whether the adapters name one base."""
    notes = Counter(note for config in configs for note in config.notes)
    found: dict[str, str] = {}
    for checkpoint, config in zip(checkpoints, configs, strict=True):
        if config.base_name is not None and not _is_path(config.base_name):
            found.setdefault(config.base_name, checkpoint.where)
    if len(found) > 1 and not any_base_name:
        (first, a), (second, b), *_ = found.items()
        raise ValueError(
            f"{b} was trained on a base called {second!r:.100}, {a} on {first!r:.100}; import adapters of one base, "
            "or give --base-name any when both are the same."
        )
    return [f"{note} in {count} of {len(configs)} configs." for note, count in notes.items()]


def _is_path(name: str) -> bool:
    """Whether a base is named by a place on somebody's machine, which says nothing."""
    return name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1 or not name


class _Collection:
    """Adapters that are to be rows of one dataset, and the network that they are for."""

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        configs: Sequence[AdapterConfig],
        base: str,
        kwargs: Mapping[str, Any],
        keep_scaling: bool,
    ):
        self.checkpoints, self.configs, self.notes = checkpoints, list(configs), []
        first = self._read(checkpoints[0])
        with errors_of(checkpoints[0].where):
            check_finite(first)
        # 1. The base, with as many classes as the heads have
        task, labels = configs[0].values.get("task_type"), _num_labels(first)
        self.base: AdapterBase = open_base(base, kwargs, task, labels)
        with torch.device("meta"):
            bare = replace(self.base.reference).build()
        # 2. What peft builds by each configuration
        self._sources: dict[str, Source] = {}
        self._renamed: dict[str, str] = {}
        for checkpoint, config in zip(checkpoints, self.configs, strict=True):
            if config.key not in self._sources:
                self._sources[config.key] = self._open_config(checkpoint, config, bare)
        # 3. One configuration for all
        common = common_config(list(self._sources.values()), keep_scaling)
        name = common.base_name if common.base_name and not _is_path(common.base_name) else self.base.name
        self.config = replace(common, base_name=name)
        with errors_of("the configuration for all adapters"):
            self._common = tensors_of_config(self.config, bare)
        self.model = add_adapter(self.base.model, self.config.to_dict())
        self._state = own_state(self.model)
        if random := [name for name in self.base.new if f"{PREFIX}{name}" in self._state]:
            raise ValueError(
                f"--base {base} has no tensor {random[0]!r}, and neither have the adapters: it would be random; give "
                "the base that they were trained on, or save its head with them (modules_to_save)."
            )
        for name, tensor in self._state.items():
            # Heads that the base lacks, behind those of the adapters.
            if name.replace(".original_module", "").removeprefix(PREFIX) in self.base.new:
                tensor.data.zero_()
        self._constants: dict[str, torch.Tensor] = {}

    def _open_config(self, checkpoint: Checkpoint, config: AdapterConfig, bare: nn.Module) -> Source:
        with errors_of(checkpoint.where):
            try:
                return Source(config, tensors_of_config(config, bare), checkpoint.where)
            except ValueError:
                names = self._read(checkpoint)
                renamed = newer_names(names, bare)
                if not renamed:
                    raise
            newer = renamed_config(config, names, renamed)
            if not self._renamed:
                self.notes.append("Module names of transformers 4 are those of transformers 5 now.")
            self._renamed |= renamed
            return Source(newer, tensors_of_config(newer, bare), checkpoint.where)

    def _read(self, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        with errors_of(checkpoint.where):
            (file,) = checkpoint.files()
            return plain_names(read_tensors(file))

    def values(self, number: int) -> tuple[dict[str, torch.Tensor], AdapterTensors]:
        """The tensors of an adapter by the network's names, checked, and what they are."""
        checkpoint, source = self.checkpoints[number], self._sources[self.configs[number].key]
        found = self._read(checkpoint)
        with errors_of(checkpoint.where):
            found = {self._renamed.get(name, name): tensor for name, tensor in found.items()}
            check_header(header_of(found), source.config)
            values = fitted(self._without_base(found, source.tensors), source.tensors)
            for name, constant in self._constants.items():
                if not torch.equal(values[name].to(constant.dtype), constant):
                    if name in self._common.factors:
                        raise _NotConstantError(name)
                    raise ValueError(
                        f"tensor {name!r:.160} is a constant of {source.config.kind}, and not that of "
                        f"{self.checkpoints[0].where}; import adapters that share it."
                    )
        return values, source.tensors

    def _without_base(self, found: dict[str, torch.Tensor], tensors: AdapterTensors) -> dict[str, torch.Tensor]:
        """The tensors of a file but for those of the base, which have to be the base's own."""
        for name in [name for name in found if name not in tensors.names and name in self._state]:
            tensor, own = found[name], self._state[name]
            if tensor.shape != own.shape or not torch.equal(tensor.to(own.dtype), own.detach()):
                raise ValueError(
                    f"tensor {name!r:.160} {tuple(tensor.shape)} is of the base, and not what --base has there "
                    f"{tuple(own.shape)}: the base was changed or resized in training, as for new tokens; merge the "
                    "adapters into it and import networks."
                )
        return {name: tensor for name, tensor in found.items() if name in tensors.names or name not in self._state}

    def constant_factors(self) -> list[frozenset[str]]:
        """Which factors A may be kept once: those of the first adapters if they are equal; then none."""
        if self.config.kind != "LORA" or len(self.checkpoints) < 2:
            return [frozenset()]
        (first, one), (second, other) = self.values(0), self.values(1)
        factors = {name for name, factor in self._common.factors.items() if factor.role == "A"}
        same = all(one.shapes[n] == other.shapes[n] and torch.equal(first[n], second[n]) for n in factors)
        trained = any(not torch.equal(first[name], second[name]) for name in first.keys() - factors)
        return [frozenset(factors), frozenset()] if factors and same and trained else [frozenset()]

    def write_base(self, folder: Path, constants: frozenset[str]) -> tuple[BaseModel, ParameterLayout]:
        """Write the base's weights with the mean of the first adapters in it, and say what rows are made of."""
        self._constants = {}
        values, _ = self.values(0)
        kept = constants | {name for name in values if name not in self._common.parameters}
        names = [name for name in self._common.parameters if name not in kept]
        layout = ParameterLayout.from_model(self.model, sorted(map(glob.escape, names)))
        rows = torch.zeros(min(num_averaged(layout), len(self.checkpoints)), layout.num_parameters)
        for number, row in enumerate(rows):
            self.fill(row, number, layout)
        layout.load_into(self.model, mean_adapter(layout, rows) if lora_pairs(layout) else rows[0])
        for name in kept:
            constant = self._state[name]
            constant.data.copy_(values[name])
            self._constants[name] = constant.detach().clone()
        reference = replace(self.base.reference, adapter=self.config.to_dict())
        return reference.save_weights(self.model, folder / Path(WEIGHTS).parent.parent), layout

    def fill(self, row: torch.Tensor, number: int, layout: ParameterLayout) -> None:
        """Put an adapter into a row `(D,)` of zeros."""
        values, tensors = self.values(number)
        RowWriter(layout, self._common).put(row, values, tensors)
        if not row.isfinite().all():
            with errors_of(self.checkpoints[number].where):
                check_finite(values)


@dataclass
class _Rows:
    """The rows of a collection, batch by batch."""

    collection: _Collection
    layout: ParameterLayout
    columns: Sequence[str]
    progress: bool
    told: dict[str, Any]

    def __post_init__(self):
        self.num_copies = 0
        self.first = torch.empty(0)

    def batches(self) -> Iterator[tuple[torch.Tensor, Mapping[str, Sequence[Any]]]]:
        """Vectors `(k, D)` and their columns."""
        size, known, next_step = self.layout.num_parameters, set(), Counter()
        reference = self.layout.flatten(self.collection.model) if lora_pairs(self.layout) else None
        signal = GaugeSignal(self.layout) if lora_pairs(self.layout) else None
        checkpoints = self.collection.checkpoints
        batch = max(1, min(BATCH, BATCH_BYTES // (4 * size)))
        bar = tqdm(total=len(checkpoints), desc="import", disable=not self.progress, leave=False)
        for numbers in torch.arange(len(checkpoints)).split(batch):
            rows = torch.zeros(len(numbers), size)
            for row, number in zip(rows, numbers.tolist(), strict=True):
                self.collection.fill(row, number, self.layout)
            raw, rows = rows, canonical_rows(self.layout, rows, reference)
            if not len(self.first):
                self.first = rows[:NUM_PROBED].clone()
            own = [checkpoints[number] for number in numbers.tolist()]
            for before, after, checkpoint in zip(raw, rows, own, strict=True) if signal else ():
                signal.add(before, after, None if checkpoint.condition is None else str(checkpoint.condition))
            for row, norm in zip(rows, rows.double().square().sum(1).tolist(), strict=True):
                # Two numbers that equal networks share and others hardly do, up to rounding.
                key = f"{norm:.5e} {row.abs().sum(dtype=torch.float64).item():.5e}"
                self.num_copies += key in known
                known.add(key)
            steps = []
            for checkpoint in own:
                step = next_step[checkpoint.run] if checkpoint.step is None else checkpoint.step
                next_step[checkpoint.run] = step + 1
                steps.append(step)
            columns: dict[str, Sequence[Any]] = {"run": [c.run for c in own], "step": steps}
            columns["epoch"] = [checkpoint.epoch for checkpoint in own]
            columns |= {name: [c.metrics.get(name) for c in own] for name in self.columns}
            if own[0].condition is not None:
                columns["condition"] = [checkpoint.condition for checkpoint in own]
            yield rows, columns
            bar.update(len(own))
        bar.close()
        if signal is not None and (found := signal.result()) is not None:
            self.told["gauge"] = found


def _num_labels(values: Mapping[str, torch.Tensor]) -> int | None:
    """Classes of the head that is saved with an adapter; `None` where there is none."""
    parts = ("lora_", "vera_", "ia3_", "base_layer")
    heads = [v for name, v in values.items() if not any(part in name for part in parts) and v.ndim == 2]
    return None if not heads else heads[-1].shape[0]
