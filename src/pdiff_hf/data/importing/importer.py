"""A parameter dataset from checkpoints that exist already."""

from __future__ import annotations

import glob
import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ...base_model import WEIGHTS, BaseModel
from ...conditions import ConditionSpec
from ...files import atomic_folder, check_new, errors_of
from ...identity import reference_difference
from ...layout import ParameterLayout
from ...wording import argument
from ..conditions import Embed
from ..record import ParameterRecorder
from ..rest import StoredRest, describe_differences
from .architecture import Architecture
from .checkpoint import Checkpoint, compile_pattern, metric_columns, read_labels, read_pattern
from .conditions import take_conditions
from .local import find_local
from .names import split_sources
from .references import read_config
from .sources import find_remote
from .state_dict import read_values


def import_checkpoints(
    sources: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    *,
    base_model: BaseModel | None = None,
    select: str | Sequence[str] | None = None,
    buffers: bool = False,
    keep_first_rest: bool = False,
    rest: str | Path | None = None,
    key: str | None = None,
    all_revisions: bool = False,
    metrics_pattern: str | None = None,
    run: str | None = None,
    independent: bool = False,
    progress: bool = True,
    describe_task: Callable[[BaseModel, ParameterLayout], Mapping[str, Any]] | None = None,
    conditions: str | Path | Mapping[str, Any] | None = None,
    condition_spec: ConditionSpec | None = None,
    embed: Embed | None = None,
) -> dict[str, Any]:
    r"""Writes a parameter dataset with one row for each checkpoint that it finds.

    One checkpoint is in memory at a time, beside the network when the first is read. What is not selected is taken
    from the first checkpoint and has to be the same in all of them, counters aside.

    Args:
        sources (`str`, `Path` or a sequence of them):
            Files of weights, by their content safetensors, archives of PyTorch or NumPy, or pickles; folders of such
            files, or of folders of them; folders of a saved model; output folders of a `transformers.Trainer`;
            `"hub:user/name"` and `"hub:user/name@revision,…"`. Each folder or repository is a run, files together are
            one, in natural order.
        output_dir (`str` or `Path`):
            Folder of the parameter dataset, new or empty; it appears when it is complete.
        base_model ([`BaseModel`], *optional*):
            The network; by default that of the first checkpoint's `config.json`. Its weights are not used. Arguments
            that nobody gave are those that the first checkpoint's shapes tell, such as the number of classes.
        select (`str` or `Sequence[str]`, *optional*):
            As in [`ParameterLayout.from_model`]; by default all tensors, or with `rest` those that checkpoints hold.
        buffers (`bool`, *optional*, defaults to `False`):
            As in [`ParameterLayout.from_model`].
        keep_first_rest (`bool`, *optional*, defaults to `False`):
            Whether to go on when tensors that are not selected differ; rows then are not the trained networks.
        rest (`str` or `Path`, *optional*):
            File of the whole network, for checkpoints that hold the trained tensors only: what they lack is its.
        key (`str`, *optional*):
            Dotted name of the entry of the files that is the network; by default the one whose tensors fit.
        all_revisions (`bool`, *optional*, defaults to `False`):
            Whether to import all commits of repositories that changed weights.
        metrics_pattern (`str`, *optional*):
            Regular expression that is searched in every name; its named groups are `step`, `epoch` and metrics, those
            that end in `_percent` are divided by 100. Example: `r"(?P<epoch>\d+)-acc(?P<val_accuracy>[\d.]+)"`.
        run (`str`, *optional*):
            Name of one run that all rows belong to.
        independent (`bool`, *optional*, defaults to `False`):
            Whether every checkpoint is the end of a training run of its own.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.
        describe_task (`Callable`, *optional*):
            What networks are judged by, to be stored as `task`, by the base model with the first checkpoint's weights
            and the layout. It is called before the others are read, and what it raises ends the import.
        conditions (`str`, `Path` or `Mapping`, *optional*):
            What every checkpoint was trained for, by its name or that of its folder; or a file of it, see
            [`read_conditions_file`].
        condition_spec ([`ConditionSpec`], *optional*):
            What these are; by default as the file says, or as they look.
        embed (`Callable`, *optional*):
            The encoder of conditions that are sentences, such as a [`TextEncoder`].

    Returns:
        `dict[str, Any]`: `num_checkpoints`, `num_parameters`, `runs`, `metrics`; `num_copies`, the rows that are
        exact copies of an earlier one, which are kept with a warning, except for those that are called best, last and
        the like; and `notes`, what was decided about the files, a line each.

    Raises:
        ValueError: there are fewer than two checkpoints; one is missing, damaged, not finite or of another
            architecture; what is not selected differs; one has no condition or several; or the folder is not empty.
            Nothing is left behind then.
    """
    output_dir = Path(output_dir)
    check_new(output_dir, "the dataset")
    checkpoints = _find(sources, all_revisions, metrics_pattern, run, independent)
    if conditions is not None:
        checkpoints, condition_spec, how = take_conditions(checkpoints, conditions, condition_spec, embed)
    base_model = _base_model(checkpoints, base_model)
    if rest is not None and not Path(rest).is_file():
        raise ValueError(f"expected a file of the whole network at {rest}, found none.")
    columns = metric_columns(checkpoints)
    metadata = {
        "select": select if select is None or isinstance(select, str) else list(select),
        "buffers": buffers,
        "keep_first_rest": keep_first_rest,
        "rows": [{"source": c.source, "revision": c.revision} for c in checkpoints],
    }
    with atomic_folder(output_dir) as folder:
        # 1. The first checkpoint says what is recorded, and what the rest of the network is
        architecture, first = Architecture(base_model, key), checkpoints[0]
        if rest is not None:
            architecture.take_rest(read_values([Path(rest)], str(rest)), str(rest))
        state = architecture.named(read_values(first.files(), first.where), first.where)
        base_model = architecture.base_model.save_weights(state, folder)
        if select is None:
            # Of what they lack, there is nothing to learn.
            select = "all" if rest is None else sorted(map(glob.escape, architecture.held))
            if not buffers and _buffers_differ(state, architecture, checkpoints[1]):
                buffers = True
                architecture.note("Running statistics differ, too, and are selected.")
        layout = architecture.layout(state, select, buffers)
        _check_not_nan(state, first.where)
        stored = StoredRest(folder / WEIGHTS, layout)
        del state
        task = None if describe_task is None else describe_task(base_model, layout)

        # 2. Row by row
        bar = tqdm(checkpoints, desc="import", disable=not progress, leave=False)
        recorder = ParameterRecorder(
            layout,
            folder,
            base_model,
            metadata={"import": metadata},
            task=task,
            conditions=condition_spec,
            embed=embed,
        )
        with recorder:
            recorder.unordered_runs = {
                checkpoint.run
                for checkpoint in checkpoints
                # Commits are in the order in which they were made.
                if checkpoint.step is None and checkpoint.epoch is None and not (all_revisions and checkpoint.revision)
            }
            num_copies, aliases = _record(
                recorder, bar, architecture, columns, None if keep_first_rest else stored, first.where
            )
    notes = architecture.notes
    if conditions is not None:
        notes.append(f"Conditions, {how}: {condition_spec.summary}.")
    if aliases:
        notes.append("Copies are left out: " + ", ".join(f"{name} of {other}" for name, other in aliases) + ".")
    if num_copies:
        warnings.warn(
            f"{num_copies} of {len(checkpoints)} checkpoints are exact copies of earlier ones; they are kept.",
            stacklevel=2,
        )
    return {
        "num_checkpoints": len(checkpoints) - len(aliases),
        "num_parameters": layout.num_parameters,
        "runs": list(dict.fromkeys(checkpoint.run for checkpoint in checkpoints)),
        "metrics": columns,
        "num_copies": num_copies,
        "notes": notes,
    }


def _find(
    sources: str | Path | Sequence[str | Path],
    all_revisions: bool,
    metrics_pattern: str | None,
    run: str | None,
    independent: bool,
) -> list[Checkpoint]:
    pattern = None if metrics_pattern is None else compile_pattern(metrics_pattern)
    if run is not None and independent:
        raise ValueError(f"expected {argument('run')} or {argument('independent')}, found both.")
    local, remote = split_sources(sources, all_revisions)
    found = find_local(local, independent) if local else []
    for source in remote:
        remote_found = find_remote(source, all_revisions)
        found += [replace(c, run=c.source) for c in remote_found] if independent else remote_found
    if len(found) < 2:
        names = ", ".join(map(str, [*local, *remote]))
        raise ValueError(f"expected at least 2 checkpoints in {names or 'the sources'}, found {len(found)}.")
    if run is not None:
        found = [replace(checkpoint, run=run) for checkpoint in found]
    return read_labels(found) if pattern is None else [read_pattern(checkpoint, pattern) for checkpoint in found]


def _base_model(checkpoints: Sequence[Checkpoint], given: BaseModel | None) -> BaseModel:
    if given is not None:
        return BaseModel(given.library, given.name, given.kwargs, trusted_imports=given.trusted_imports)
    first = checkpoints[0]
    if first.config is None:
        network = argument("base_model", 'BaseModel.timm("resnet18")', "timm:resnet18")
        raise ValueError(
            f"{first.where}: expected a config.json beside it, found none; name the base model, e.g. {network}."
        )
    base_model = read_config(first.config, first.where)
    # Files of one folder share its config.
    others = {checkpoint.config: checkpoint.where for checkpoint in reversed(checkpoints)}
    for config in [config for config in reversed(others) if config not in (None, first.config)]:
        difference = reference_difference(base_model, read_config(config, others[config]))
        if difference is not None:
            raise ValueError(
                f"{others[config]}: config.json is not that of {first.where}: {difference}; import networks of one "
                f"architecture, or give {argument('base_model')}."
            )
    return base_model


def _record(
    recorder: ParameterRecorder,
    checkpoints: Iterable[Checkpoint],
    architecture: Architecture,
    columns: Sequence[str],
    rest: StoredRest | None,
    first: str,
) -> tuple[int, list[tuple[str, str]]]:
    """Record checkpoints whose other tensors are `rest`, that of `first`, if given.

    Returns the number of exact copies, and the names of those that were left out, each with what it is a copy of.
    """
    layout, known, vectors, next_step = recorder.layout, {}, set(), Counter()
    num_copies, aliases = 0, []
    for checkpoint in checkpoints:
        where = checkpoint.where
        state = architecture.named(read_values(checkpoint.files(), where), where)
        with errors_of(where):
            vector = layout.flatten(state)
            finite = vector.isfinite()
            if not finite.all():
                raise ValueError(
                    f"tensor {layout.locate(int(finite.int().argmin()))!r} has a NaN or infinite value, expected "
                    "finite values; leave this checkpoint out."
                )
        if rest is not None:
            _check_rest(state, rest, where, first, architecture.buffers)
        del state
        hashed = (checkpoint.run, hashlib.sha256(vector.numpy()).digest())
        if hashed in known and checkpoint.is_alias:
            aliases.append((checkpoint.source, known[hashed]))
            continue
        num_copies += hashed[1] in vectors
        vectors.add(hashed[1])
        known.setdefault(hashed, checkpoint.source)
        # One recording of all runs: closing one goes through all rows that are there.
        recorder.run = checkpoint.run
        step = next_step[checkpoint.run] if checkpoint.step is None else checkpoint.step
        recorder.record(
            vector,
            step=step,
            epoch=checkpoint.epoch,
            condition=checkpoint.condition,
            **{column: checkpoint.metrics.get(column) for column in columns},
        )
        next_step[checkpoint.run] = step + 1
    return num_copies, aliases


def _buffers_differ(state: Mapping[str, torch.Tensor], architecture: Architecture, second: Checkpoint) -> bool:
    """Whether buffers other than counters and indices are not the same in the first two checkpoints."""
    floats = [name for name in architecture.buffers & state.keys() if state[name].is_floating_point()]
    if not floats:
        return False
    other = architecture.named(read_values(second.files(), second.where), second.where)
    return any(not torch.equal(state[name], other[name].to(state[name].dtype)) for name in floats)


def _check_not_nan(state: Mapping[str, torch.Tensor], where: str) -> None:
    # Infinities are legitimate here: masks of attention are made of them.
    for name, tensor in state.items():
        if tensor.isnan().any():
            raise ValueError(
                f"{where}: tensor {name!r} has a NaN, expected finite parameters; leave this checkpoint out."
            )


def _check_rest(
    state: Mapping[str, torch.Tensor], rest: StoredRest, where: str, first: str, buffers: set[str]
) -> None:
    """Refuse tensors that are not selected and differ from those of the first checkpoint, which the dataset keeps."""
    try:
        differences = rest.differences(state, state.keys())
    except ValueError as error:
        raise ValueError(f"{where}, unlike {first}: {error}") from error
    if not differences:
        return
    name, how = describe_differences(differences)
    everything = [argument("select", "'all'", "all")]
    if buffers & differences.keys():
        everything.append(argument("buffers", "True"))
    first_rest = argument("keep_first_rest", "True", "first")
    raise ValueError(
        f"{where}: tensor {name!r} is not selected, but differs from that of {first} {how}; "
        f"expected the same in all checkpoints. Give {' and '.join(everything)}, or {first_rest} to keep the first's."
    )
