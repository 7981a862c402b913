"""What can be done about a parameter dataset, said as whoever made it can do it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

# What can be done about a dataset that a recipe collected, along a training or of independent runs, that was imported,
# or that was recorded.
ACTIONS = {
    "collect": {
        "more": "Collect more checkpoints (--set collect.num_checkpoints=…)",
        "more_independent": "Collect longer with more steps between checkpoints (--set collect.every=…), or several "
        "runs from one base model (--set collect.runs=…)",
        "closer": "more or closer ones (--set collect.num_checkpoints=…, a lower --set collect.learning_rate=…), or "
        "fewer tensors (--set collect.select=…)",
        "select": "select other tensors (--set collect.select=…)",
        "one_run": "Collect along one run (--set collect.runs=1), or fine-tune all runs from one base model (--set "
        "collect.independent=false)",
        "drop": "Drop the rows {rows} (dataset.select the others, save_parameter_dataset them)",
    },
    "runs": {
        "more": "Collect more runs (--set collect.runs=…)",
        "more_independent": "Collect more runs (--set collect.runs=…)",
        "closer": "more runs (--set collect.runs=…), or fewer tensors (--set collect.select=…)",
        "select": "select other tensors (--set collect.select=…)",
        "one_run": "Collect along one run (--set collect.kind=trajectory)",
        "drop": "Drop the rows {rows} (dataset.select the others, save_parameter_dataset them)",
    },
    "import": {
        "more": "Import more checkpoints",
        "more_independent": "Import checkpoints that are farther apart in time, or of several runs that start at one "
        "network",
        "closer": "more or closer checkpoints, or fewer tensors (pdiff import … --select …)",
        "select": "select other tensors (pdiff import … --select …)",
        "one_run": "Import checkpoints of one run, or of runs that start at one network",
        "drop": "Import again without the files of the rows {rows}",
    },
    "recording": {
        "more": "Record more checkpoints",
        "more_independent": "Record longer with more steps in between, or several runs that start at one network",
        "closer": "more or closer checkpoints, with a lower learning rate, or fewer tensors (a ParameterLayout that "
        "selects them)",
        "select": "record other tensors (a ParameterLayout that selects them)",
        "one_run": "Record along one run, or runs that start at one network",
        "drop": "Drop the rows {rows} (dataset.select the others, save_parameter_dataset them)",
    },
}


def origin_of(metadata: Mapping) -> str:
    """Who made a dataset with these metadata: a key of `ACTIONS`."""
    origin = next((name for name in ("collect", "import") if name in metadata), "recording")
    section = metadata.get("collect")
    return "runs" if isinstance(section, Mapping) and section.get("kind") == "runs" else origin


def actions_for(report: Mapping) -> Mapping[str, str]:
    """What can be done about the dataset of a report, in the words of whoever made it."""
    return ACTIONS[report["origin"]]


def align_command(report: Mapping) -> str:
    """The command that brings independent networks into a common order, where that is possible."""
    if report["base_model"] is None or report["is_aligned"]:
        return ""
    return f", or bring the networks into a common order first (pdiff align {_dataset(report)} --out …)"


def train_command(report: Mapping, setting: str) -> str:
    """The command that trains on the dataset with a setting."""
    return f"pdiff train {_dataset(report)} --out … --set {setting}"


def _dataset(report: Mapping) -> str:
    return shlex.quote(report["dataset"])
