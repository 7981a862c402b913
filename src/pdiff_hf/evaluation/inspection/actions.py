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
        "diverse": "Independent runs have it (--set collect.kind=runs --set collect.runs=… --set collect.select=all)",
        "base model": "restore its layout.json",
        "task": "restore its stats.json",
        "drop": "Drop the rows {rows} (dataset.select the others, save_parameter_dataset them)",
    },
    "runs": {
        "more": "Collect more runs (--set collect.runs=…)",
        "more_independent": "Collect more runs (--set collect.runs=…)",
        "closer": "more runs (--set collect.runs=…), or fewer tensors (--set collect.select=…)",
        "select": "select other tensors (--set collect.select=…)",
        "one_run": "Collect along one run (--set collect.kind=trajectory)",
        "diverse": "Other runs may have it: more classes or fewer train examples, trained for longer",
        "base model": "restore its layout.json",
        "task": "restore its stats.json",
        "drop": "Drop the rows {rows} (dataset.select the others, save_parameter_dataset them)",
    },
    "import": {
        "more": "Import more checkpoints",
        "more_independent": "Import checkpoints that are farther apart in time, or of several runs that start at one "
        "network",
        "closer": "more or closer checkpoints, or fewer tensors (pdiff import … --select …)",
        "select": "select other tensors (pdiff import … --select …)",
        "one_run": "Import checkpoints of one run, or of runs that start at one network",
        "diverse": "Import the networks of independent runs",
        "base model": "pdiff import … --base …",
        "task": "pdiff import … --task …",
        "drop": "Import again without the files of the rows {rows}",
    },
    "recording": {
        "more": "Record more checkpoints",
        "more_independent": "Record longer with more steps in between, or several runs that start at one network",
        "closer": "more or closer checkpoints, with a lower learning rate, or fewer tensors (a ParameterLayout that "
        "selects them)",
        "select": "record other tensors (a ParameterLayout that selects them)",
        "one_run": "Record along one run, or runs that start at one network",
        "diverse": "Record the networks of independent runs",
        "base model": "the base_model of ParameterRecorder",
        "task": "the task of ParameterRecorder, or --task with the commands",
        "drop": "Drop the rows {rows} (dataset.select the others, save_parameter_dataset them)",
    },
}


FUNCTIONAL = "autoencoder.kind=functional"


def origin_of(metadata: Mapping) -> str:
    """Who made a dataset with these metadata: a key of `ACTIONS`."""
    origin = next((name for name in ("collect", "import") if name in metadata), "recording")
    section = metadata.get("collect")
    return "runs" if isinstance(section, Mapping) and section.get("kind") == "runs" else origin


def actions_for(report: Mapping) -> Mapping[str, str]:
    """What can be done about the dataset of a report, in the words of whoever made it."""
    return ACTIONS[report["origin"]]


def functional_settings(report: Mapping) -> list[str]:
    """Settings with which networks are compared by what they compute; empty where that cannot be, or not be learnt."""
    diversity = report["functional"] and report["functional"]["diversity"]
    latents = diversity["latent_channels"] if diversity else None
    if latents is None or missing_for_functions(report):
        return []
    return [FUNCTIONAL, f"autoencoder.latent_channels={latents}"]


def needs_functions(report: Mapping) -> bool:
    """Whether nothing but what they compute makes networks comparable: they lie in many basins, and differ in it."""
    functional = report["functional"]
    return bool(functional and functional["basins"] == "many" and functional_settings(report))


def missing_for_functions(report: Mapping) -> list[str]:
    """What a dataset does not name, without which nobody knows what its networks compute."""
    return [what for what, key in (("base model", "base_model"), ("task", "task")) if report[key] is None]


def functional_action(report: Mapping) -> str:
    """How networks are compared by what they compute, which needs no common order; or what is missing for it."""
    if settings := functional_settings(report):
        return f"compare them by what they compute, which needs no alignment: {train_command(report, *settings)}"
    way = f"compare them by what they compute, which needs no alignment ({train_command(report, FUNCTIONAL)})"
    if missing := missing_for_functions(report):
        named = " and ".join(f"a {what}" for what in missing)
        how = ", ".join(actions_for(report)[what] for what in missing)
        return f"{way}, for which the dataset has to name {named} ({how})"
    if report["functional"] is None:
        return f"{way}, for which the examples of its task ({report['task']}) have to be there"
    return f"{way}, for which there are too few checkpoints that are held out and differ as functions"


def train_command(report: Mapping, *settings: str) -> str:
    """The command that trains on the dataset with some settings."""
    return f"pdiff train {_dataset(report)} --out …{''.join(f' --set {setting}' for setting in settings)}"


def _dataset(report: Mapping) -> str:
    return shlex.quote(report["dataset"])
