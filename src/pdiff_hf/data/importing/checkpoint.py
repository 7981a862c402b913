"""One checkpoint to be imported, and the numbers in its name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

# Columns that are no metrics, and arguments of the recorder by which a column would not get its own name.
RESERVED = ("parameters", "run", "seed", "state", "self", "loss", "accuracy")

PERCENT = "_percent"

SUFFIXES = re.compile(r"(\.(safetensors|pth|pt|bin|th|ckpt|model|tar|pkl|pickle|npz|zip|state))+$", re.IGNORECASE)

# What scripts call a checkpoint that they keep beside the numbered ones.
ALIAS = re.compile(r"(?<![a-z])(best|last|latest|final|current)(?![a-z])", re.IGNORECASE)

# timm's own training script calls the checkpoint of an epoch by its number alone.
TIMM = re.compile(r"(?<![^/])checkpoint-([0-9]+)(?=\.pth\.tar$)")

# Said in a name, a number has a meaning; alone it could be anything.
LABELS = {
    "step": re.compile(r"(?<![a-z])(?:global[-_]?)?step[-_=]?([0-9]+)(?![.]?[0-9])", re.IGNORECASE),
    "epoch": re.compile(r"(?<![a-z])epoch[-_=]?([0-9]+)(?![.]?[0-9])", re.IGNORECASE),
}


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, whose weights are not read yet.

    Args:
        where (`str`): What messages call it.
        source (`str`): What `stats.json` calls it; a path is relative.
        files (`Callable[[], list[Path]]`): Gives the file or the shards; from the Hub, they are downloaded then.
        run (`str`): Checkpoints of one training run have the same.
        revision (`str`, *optional*): Commit on the Hub.
        config (`Path`, *optional*): Its `config.json`.
        step (`int`, *optional*): Optimiser step.
        epoch (`float`, *optional*): Epoch.
        metrics (`dict[str, float]`): Further columns.
        condition (*optional*): What it was trained for.
    """

    where: str
    source: str
    files: Callable[[], list[Path]]
    run: str
    revision: str | None = None
    config: Path | None = None
    step: int | None = None
    epoch: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    condition: Any = None

    @property
    def is_alias(self) -> bool:
        """Whether its name says best, last or the like, and it may be a copy of another one."""
        return self.step is None and self.epoch is None and bool(ALIAS.search(self.source.rpartition("/")[2]))


def without_suffixes(name: str) -> str:
    """The name of a file of weights without what only says its format."""
    return SUFFIXES.sub("", name)


def natural_key(name: str) -> list[str | int]:
    """Sorts epoch_2 before epoch_10."""
    return [int(part) if part.isdecimal() and part.isascii() else part for part in re.split(r"([0-9]+)", name)]


def check_number(value: object, name: str, where: str) -> float:
    """A metric as a float; `ValueError` when it is no finite number, or an accuracy that is no fraction."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {name!r} is {value!r}, expected a finite number.")
    if name.endswith("accuracy") and not 0 <= number <= 1:
        raise ValueError(
            f"{where}: {name!r} is {value!r}, expected a fraction in [0, 1]; where file names have percent, name the "
            f"group (?P<{name}{PERCENT}>…)."
        )
    return number


def compile_pattern(pattern: str) -> re.Pattern:
    """Compile `--metrics-pattern`; `ValueError` when it is malformed, or its groups have no or impossible names."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"metrics pattern {pattern!r} is no regular expression: {error}.") from error
    if not compiled.groupindex:
        raise ValueError(f"metrics pattern {pattern!r}: expected named groups such as (?P<epoch>[0-9]+), found none.")
    if reserved := [name for name in compiled.groupindex if name.removesuffix(PERCENT) in RESERVED]:
        raise ValueError(
            f"metrics pattern {pattern!r}: a group may not be called {reserved[0]!r}; say train_loss or val_accuracy."
        )
    return compiled


def read_pattern(checkpoint: Checkpoint, pattern: re.Pattern) -> Checkpoint:
    """Take step, epoch and metrics from the name of a checkpoint; `ValueError` when it does not match."""
    name = _name(checkpoint)
    match = pattern.search(name)
    if match is None:
        raise ValueError(
            f"{checkpoint.where}: the metrics pattern {pattern.pattern!r} does not match its name {name!r}; change "
            "it, or import only checkpoints that it matches."
        )
    found, step = {}, checkpoint.step
    for group, text in match.groupdict().items():
        if text is None:
            continue
        if group == "step":
            if not re.fullmatch(r"[0-9]{1,18}", text):
                raise ValueError(f"{checkpoint.where}: step is {text!r}, expected a whole number.")
            step = int(text)
        elif group.endswith(PERCENT):
            column = group.removesuffix(PERCENT)
            found[column] = check_number(check_number(text, group, checkpoint.where) / 100, column, checkpoint.where)
        else:
            found[group] = check_number(text, group, checkpoint.where)
    epoch = found.pop("epoch", checkpoint.epoch)
    return replace(checkpoint, step=step, epoch=epoch, metrics={**checkpoint.metrics, **found})


def read_labels(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Take step and epoch from names like `epoch_3` where all checkpoints of a run have one, each another.

    Those that are called best, last and the like need none, and come at the end of their run.
    """
    labelled: list[Checkpoint] = []
    for _, group in groupby(checkpoints, key=lambda checkpoint: checkpoint.run):
        run = sorted(group, key=lambda checkpoint: checkpoint.is_alias)
        numbered = [checkpoint for checkpoint in run if not checkpoint.is_alias] or run
        names = [_name(replace(c, source=TIMM.sub(r"epoch_\1", c.source))) for c in numbered]
        for key, label in LABELS.items():
            found = [label.findall(name) for name in names]
            unambiguous = all(len(numbers) == 1 and len(numbers[0]) <= 18 for numbers in found)
            if unambiguous and len({int(numbers[0]) for numbers in found}) == len(numbered):
                numbered = [
                    checkpoint if vars(checkpoint)[key] is not None else replace(checkpoint, **{key: int(number)})
                    for checkpoint, (number,) in zip(numbered, found, strict=True)
                ]
        labelled += numbered + run[len(numbered) :]
    return labelled


def metric_columns(checkpoints: Iterable[Checkpoint]) -> list[str]:
    """The metrics that any of the checkpoints has; `ValueError` for the name of a column that is no metric."""
    from ..columns import KEYS

    names = dict.fromkeys(name for checkpoint in checkpoints for name in checkpoint.metrics)
    if reserved := [name for name in names if name in RESERVED or name in KEYS]:
        raise ValueError(f"expected metrics with names of their own, found {reserved[0]!r}.")
    return list(names)


def _name(checkpoint: Checkpoint) -> str:
    """Relative path without the suffix of the weights, or repository and revision."""
    return without_suffixes(checkpoint.source)
