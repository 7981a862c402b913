"""What the results page knows of a finished run, read from its small files alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pdiff_hf.files import read_json
from pdiff_hf.results.metrics import METRICS_FILE, Metrics
from pdiff_hf.results.records import SelectedDifference
from pdiff_hf.runs.folder import GATE_FILE, RECIPE_FILE, Run

from .cells import Cell, find_cell, order_of, paper, paper_numbers

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def find_runs(folders: Sequence[str | Path]) -> tuple[list[str | Path], list[str]]:
    """Those of some folders that are finished runs, and what the others lack.

    Raises:
        ValueError: there is none.
    """
    runs, problems = [], []
    for folder in folders:
        try:
            read_result(folder)
            runs.append(folder)
        except ValueError as error:
            problems.append(str(error))
    if not runs:
        raise ValueError(problems[0])
    return runs, problems


def collect_results(folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Read runs, in the order of the paper's matrix; the seeds of one run are one result.

    Args:
        folders (`Sequence`): Folders of runs, or of `pdiff run --seeds`, with `seed-N` and `report` inside.

    Returns:
        `list[dict]`: JSON-able, without a path of this machine.

    Raises:
        ValueError: a folder is no finished run, or is given twice.
    """
    resolved = [Path(folder).resolve() for folder in folders]
    if twice := [folder for folder in resolved if resolved.count(folder) > 1]:
        raise ValueError(f"expected every run once, found {twice[0].name} {resolved.count(twice[0])} times.")
    results = [read_result(folder) for folder in folders]
    return sorted(results, key=lambda result: (order_of(Cell(**result["cell"])), result["name"]))


def read_result(folder: str | Path) -> dict[str, Any]:
    """Read one run, or the seeds of one, see [`collect_results`]."""
    folder = Path(folder)
    members = sorted(folder.glob("seed-*"), key=lambda path: (len(path.name), path.name)) or [folder]
    report = folder if len(members) > 1 else members[0]
    metrics = Metrics.read(_existing(report / "report" / METRICS_FILE, folder))
    recipes = [_read_recipe(_existing(member / RECIPE_FILE, folder)) for member in members]
    recipe, task = recipes[0], metrics.task
    known = [Metrics.read(member / "report" / METRICS_FILE) for member in members]
    gates = [read_json(member / "autoencoder" / GATE_FILE) for member in members]
    cell = find_cell(recipe)
    collect = recipe["collect"]
    return {
        "name": folder.resolve().name,
        "cell": {"network": cell.network, "selection": cell.selection, "data": cell.data},
        "network": _network_name(cell, recipe),
        "selection": cell.selection or _text(collect["select"]),
        "dataset": _dataset_name(cell, recipe),
        "num_parameters": metrics.num_parameters,
        "kind": task.get("kind"),
        **{key: task.get(key) for key in ("num_train", "num_val", "num_test", "image_size")},
        "num_checkpoints": metrics.original.n,
        "seeds": [values["seed"] for values in recipes],
        "groups": {name: group.to_dict() for name, group in metrics.groups.items()},
        "selected_difference": metrics.selected_comparisons.get("original", SelectedDifference()).to_dict(),
        "finding": metrics.finding,
        "verdict": metrics.verdict,
        "reconstruction": {
            key: _mean([gate.get(key) for gate in gates]) for key in ("explained_variance", "accuracy_drop")
        },
        "setting": _setting(recipe),
        "timings_s": _total(members, "seconds", metrics.timings_s),
        "peak_rss_mb": _total(members, "peak_rss_mb", metrics.peak_rss_mb),
        "hardware": _same([values.hardware for values in known]),
        "versions": _same([values.versions for values in known]),
        "dates": sorted({values.date for values in known if values.date is not None}),
        "paper": _paper(cell),
        "differences": _differences(cell, recipe, task),
    }


def _existing(path: Path, folder: Path) -> Path:
    if not path.is_file():
        raise ValueError(
            f"expected a finished run at {folder}, found no {path.relative_to(folder)} there; `pdiff run` and "
            "`pdiff evaluate` write it."
        )
    return path


def _read_recipe(path: Path) -> dict[str, Any]:
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    if missing := [name for name in ("task", "base_model", "collect") if name not in recipe]:
        raise ValueError(f"{path}: expected the recipe of a whole run, found no section {missing[0]!r}.")
    return recipe


def _network_name(cell: Cell, recipe: Mapping[str, Any]) -> str:
    return paper()["networks"].get(cell.network) or cell.network or recipe["base_model"]["name"].rpartition(":")[2]


def _dataset_name(cell: Cell, recipe: Mapping[str, Any]) -> str:
    if cell.data in paper()["data"]:
        return paper()["data"][cell.data][0]
    dataset = recipe["task"]["dataset"]
    # A path of this machine is nobody else's business.
    return dataset if HUB_ID.fullmatch(dataset) else Path(dataset).name


def _text(select: str | Sequence[str]) -> str:
    return select if isinstance(select, str) else ", ".join(select)


def _setting(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that most decide what a run costs and how it ends."""
    keys = {
        "base_training": ("epochs", "learning_rate", "train_batch_size"),
        "collect": ("num_checkpoints", "runs", "every", "learning_rate"),
        "autoencoder": ("kind", "preset", "latent_channels", "latent_length", "steps"),
        "diffusion": ("preset", "steps"),
        "generate": ("num_samples", "scheduler", "num_inference_steps"),
    }
    setting = {
        section: {key: recipe[section][key] for key in names if key in recipe.get(section, {})}
        for section, names in keys.items()
    }
    return {"pretrained": bool(recipe["base_model"].get("kwargs", {}).get("pretrained")), **setting}


def _differences(cell: Cell, recipe: Mapping[str, Any], task: Mapping[str, Any]) -> list[str]:
    """In what a run is not what the paper did, as parts of a sentence."""
    theirs, ours = paper()["setting"], _setting(recipe)
    everything = paper()["data"].get(cell.data, [None, None])[1]
    found = []
    num_train = task.get("num_train")
    if num_train is not None:
        of = f"of {everything:,} training examples" if everything and num_train < everything else "training examples"
        size = f" at {task['image_size']}×{task['image_size']} pixels" if task.get("image_size") else ""
        found.append(f"{num_train:,} {of}{size}")
    epochs = ours["base_training"].get("epochs")
    start = "from timm's pretrained weights" if ours["pretrained"] else "from scratch"
    instead = "" if epochs == theirs["base_epochs"] else f" instead of {theirs['base_epochs']}"
    found.append(f"base model trained for {epochs} epoch{'s' if epochs != 1 else ''}{instead} {start}")
    count = ours["collect"]["num_checkpoints"]
    if count != theirs["num_checkpoints"]:
        found.append(f"{count} checkpoints instead of {theirs['num_checkpoints']}")
    if (ours["autoencoder"].get("preset"), ours["diffusion"].get("preset")) != ("paper", "paper"):
        kind = ours["autoencoder"].get("kind")
        which = {"pca": "a linear autoencoder", "none": "no autoencoder"}.get(kind, "the fast autoencoder")
        found.append(f"{which} and the fast denoiser instead of the paper's")
    generate = ours["generate"]
    if generate.get("num_samples") != theirs["num_samples"]:
        found.append(f"{generate.get('num_samples')} networks drawn instead of {theirs['num_samples']}")
    if generate.get("scheduler") != theirs["scheduler"]:
        found.append(
            f"{generate.get('num_inference_steps')} steps of {generate.get('scheduler')} instead of "
            f"{theirs['num_inference_steps']} of {theirs['scheduler']}"
        )
    return [*found, "best networks chosen on val, not on the training examples"]


def _paper(cell: Cell) -> dict[str, float] | None:
    numbers = paper_numbers(cell)
    return None if numbers is None else dict(zip(("original", "average", "generated"), numbers, strict=True))


def _total(members: Sequence[Path], key: str, reported: Mapping[str, float]) -> dict[str, float]:
    """What a report says of every stage, or the mean of the runs where it knows nothing."""
    if reported:
        return dict(reported)
    stages = [Run(member).stages for member in members]
    return {stage: _mean([costs[stage][key] for costs in stages if stage in costs]) for stage in stages[0]}


def _mean(values: Sequence[float | None]) -> float | None:
    return None if not values or any(value is None for value in values) else sum(values) / len(values)


def _same(values: Sequence[Any]) -> Any:
    """What all seeds agree in, else `None`."""
    return values[0] if all(value == values[0] for value in values) else None
