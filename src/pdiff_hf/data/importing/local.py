"""Checkpoints on disk, with what their names and the files beside them say."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ...files import check_regular, read_json
from .checkpoint import Checkpoint, check_number, natural_key, without_suffixes
from .folders import TRAINER, find_runs, model_config
from .state_dict import saved_model_files

# JSON's, without `bool`, which is an `int`.
NUMBERS = (int, float)

# What Trainer logs of a step that says nothing about the network.
NO_METRICS = re.compile(r"eval_(runtime|model_preparation_time|jit_compilation_time|\w+_per_second|mem_\w+)")


def find_local(sources: Sequence[str | Path], independent: bool = False) -> list[Checkpoint]:
    """The checkpoints of the local sources of [`import_checkpoints`].

    Raises:
        ValueError: a source is missing or holds no checkpoint, or what is beside the weights is malformed.
    """
    paths = [Path(source) for source in sources]
    if missing := [path for path in paths if not path.exists()]:
        raise ValueError(f"expected checkpoints at {missing[0]}, found no such file or folder.")
    resolved = [path.resolve() for path in paths]
    if twice := [path for path in paths if resolved.count(path.resolve()) > 1]:
        raise ValueError(f"expected every source once, found {twice[0]} twice.")
    # A run is a list of places, a place is a file or the folder of a saved model.
    files = [check_regular(path, "weights or a folder") for path in paths if not path.is_dir()]
    files.sort(key=lambda path: natural_key(str(path)))
    runs: list[tuple[Path | None, list[Path]]] = [(None, files)] if files else []
    for path in paths:
        if path.is_dir():
            runs += find_runs(path)
    root = os.path.commonpath([place.resolve().parent for _, places in runs for place in places])
    top = os.path.commonpath([owner.parent for owner, _ in runs if owner] or [root])
    files = [place for _, places in runs for place in places if not place.is_dir()]
    configs = {folder: model_config(folder) for folder in {file.parent for file in files}}
    found = []
    for owner, places in runs:
        run = "run-0" if owner is None else owner.relative_to(top).as_posix()
        for place in places:
            source = place.resolve().relative_to(root).as_posix()
            name = without_suffixes(source) if independent else run
            if place.is_dir():
                found.append(_saved_model(place, source, name))
            else:
                check_regular(place, "weights")
                config = configs[place.parent]
                found.append(Checkpoint(str(place), source, lambda place=place: [place], name, config=config))
    return found


def _saved_model(place: Path, source: str, run: str) -> Checkpoint:
    names = {path.name for path in place.iterdir()}
    weights = saved_model_files(names, lambda name: read_json(place / name), str(place))
    step, epoch, metrics = None, None, {}
    if match := TRAINER.fullmatch(place.name):
        step = int(match[1])
        if "trainer_state.json" in names:
            epoch, metrics = trainer_state(place / "trainer_state.json", step)
    return Checkpoint(
        str(place),
        source,
        lambda: [place / name for name in weights],
        run,
        config=place / "config.json" if "config.json" in names else None,
        step=step,
        epoch=epoch,
        metrics=metrics,
    )


def trainer_state(file: Path, step: int) -> tuple[float | None, dict[str, float]]:
    """Epoch and metrics of a step: `loss` is `train_loss`, `eval_accuracy` is `val_accuracy`."""
    state = read_json(file)
    if not isinstance(state, dict) or not isinstance(history := state.get("log_history"), list):
        raise ValueError(f"{file}: expected the state of a Trainer with a 'log_history', found none.")
    if state.get("global_step") != step:
        raise ValueError(
            f"{file}: expected global_step {step}, as the folder is named, found {state.get('global_step')}."
        )
    metrics = {}
    for entry in history:
        if isinstance(entry, dict) and entry.get("step") == step:
            for name, value in entry.items():
                if name == "loss":
                    metrics["train_loss"] = check_number(value, name, str(file))
                elif name.startswith("eval_") and type(value) in NUMBERS and not NO_METRICS.fullmatch(name):
                    metrics[f"val_{name.removeprefix('eval_')}"] = check_number(value, name, str(file))
    epoch = state.get("epoch")
    return (epoch if type(epoch) in NUMBERS and math.isfinite(epoch) else None), metrics
