"""Markdown and metadata of cards, of what `metrics.json` says; what it does not know is left out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import EvalResult

from ..builders import OWN_FACTORIES
from ..hub.card_text import MEAN_METRIC, SELECTED_METRIC, code, escape, hub_id, literal, make_table, one_line
from .metrics import Metrics
from .tables import group_table
from .tasks_table import accuracy_table
from .text import number, percent

UNSEEN_METRIC = "mean test accuracy of generated networks on unseen tasks"
# Tensors that are named in the text.
MAX_NAMES = 6


def results_table(metrics: Metrics) -> str:
    """All groups with their intervals, of networks for unseen tasks all ways to these."""
    if metrics.tasks is not None:
        table = accuracy_table(metrics)
        return make_table(table.columns, [(escape(name), *cells) for name, *cells in table.rows])
    columns = ("networks", "accuracy", "difference", "selected", "iou_nearest", "joint")
    table = group_table(metrics, columns)
    return make_table(table.columns, [(escape(name), *cells) for name, *cells in table.rows])


def novelty_lines(metrics: Metrics) -> list[str]:
    """How new the generated networks are, and how far from the originals."""
    group, lines, share_of = metrics.generated, [], partial(percent, digits=0)
    shares, similarity = group.novel_and_performant, group.similarity
    if shares.performant is not None:
        share = share_of(shares.performant, shares.ci95.performant)
        metric = metrics.metric
        lines.append(f"Performant, test {metric.name} {metric.not_worse} the originals' mean: {share}")
    for text, values, intervals in (
        ("Novel", shares.novel, shares.ci95.novel),
        ("Both novel and performant", shares.joint, shares.ci95.joint),
    ):
        known = [f"{share_of(value, intervals.get(multiple))} at {multiple}" for multiple, value in values.items()]
        lines += [f"{text}: {', '.join(known)}"] if known else []
    if shares.copied is not None:
        text = "Copies, closer than a third of what originals are from their nearest other one"
        lines.append(f"{text}: {share_of(shares.copied)}")
    nearest = similarity.l2_nearest_mean
    if nearest is not None and metrics.yardstick:
        distance = number(nearest, ".3g", similarity.ci95.l2_nearest_mean)
        ratio = f"{nearest / metrics.yardstick:.3g} times what is usual among independent originals"
        lines.append(f"L2 distance to the nearest original: {distance}, {ratio}")
    if group.spread is not None:
        lines.append(
            f"Spread, the distance from the originals' mean in units of the originals' own: {group.spread:.2f} "
            "(averages of 16 independent networks have 0.25)"
        )
    return lines


def comparison_lines(metrics: Metrics) -> list[str]:
    """The generated networks minus what averaging and training on give."""
    lines = []
    for name, group in metrics.rivals().items():
        mean, chosen = metrics.comparisons[name], metrics.selected_comparisons.get(name)
        write = metrics.metric.write_difference
        unit = "points" if metrics.metric.is_accuracy else f"in {escape(metrics.metric.name)}"
        line = f"{escape(group.description or name)}: {write(mean.difference, mean.ci95)} {unit} on average"
        if chosen is not None:
            line += f", {write(chosen.difference, chosen.ci95)} for those that are best on val"
            line += f" (McNemar's test: p = {chosen.p_value:.3f})" if chosen.p_value is not None else ""
        if soup := metrics.soup_comparisons.get(name):
            line += (
                f"; average against average, the same soup of the generated ones: {write(soup.difference, soup.ci95)}"
            )
        lines.append(line)
    return lines


def ensemble_line(metrics: Metrics) -> str | None:
    """Accuracy of the largest ensembles of generated networks and of originals."""
    texts = []
    for name in ("generated", "original"):
        if sizes := metrics.ensembles.get(name):
            size = max(sizes, key=int)
            accuracy = sizes[size].accuracy
            texts.append(f"{size} {name} networks {percent(accuracy.mean, accuracy.ci95)}")
    return f"Averaged probabilities of {', of '.join(texts)}." if texts else None


def task_lines(task: Mapping | None) -> list[str]:
    """The examples of a task: dataset, splits, sizes, preprocessing; or the function that scores networks."""
    if (function := find(task, "function")) is not None:
        return [f"Scored by a function, {code(str(function))}"]
    label, repo = task_dataset(task)
    if label is None:
        return []
    name = code(label) if repo is None else f"[{escape(label)}](https://huggingface.co/datasets/{repo})"
    config = f", configuration {code(task['config_name'])}" if task.get("config_name") else ""
    lines = [f"Data: {name}{config}"]
    sizes = [f"{task[f'num_{split}']:,} {split}" for split in ("train", "val", "test") if task.get(f"num_{split}")]
    if sizes:
        classes = f", {task['num_classes']} classes" if task.get("num_classes") else ""
        lines.append(f"Disjoint sets of examples: {', '.join(sizes)}{classes}")
    splits = {split: task.get(f"{split}_split") for split in ("train", "val", "test")}
    stored = [
        f"{split} from {code(name)}" if name else f"{split} held out of the training split"
        for split, name in splits.items()
        if name or split != "train"
    ]
    lines.append(f"Splits: {', '.join(stored)}")
    if task.get("image_size") and task.get("in_chans"):
        size = task["image_size"]
        lines.append(f"Preprocessing: {size}×{size} pixels, channels: {task['in_chans']}, augmentation "
                     f"{code(task.get('augment', 'none'))}")  # fmt: skip
    if task.get("tokenizer") and task.get("max_length"):
        lines.append(f"Preprocessing: tokenizer {code(task['tokenizer'])}, {task['max_length']} tokens")
    return lines


def task_dataset(task: Mapping | None) -> tuple[str | None, str | None]:
    """Name of a task's dataset to be shown, and its Hub id if it has one; paths of a machine are not shown."""
    if find(task, "dataset") is None:
        return None, None
    name = str(task["dataset"])
    # `digits` is in scikit-learn; only what was a folder has a fingerprint.
    repo = None if name == "digits" or task.get("dataset_fingerprint") else hub_id(name)
    return one_line(name if repo else Path(name).name or name), repo


def eval_results(metrics: Metrics, values: Mapping[str, tuple[float | None, Any]]) -> list[EvalResult]:
    """Test accuracies by their names, with intervals, as results for a model-index; none without a dataset's name."""
    task = metrics.task
    label, repo = task_dataset(task)
    if label is None or not task.get("kind"):
        return []
    return [
        EvalResult(
            task_type=one_line(task["kind"]).replace("_", "-"),
            dataset_type=repo or label,
            dataset_name=label,
            dataset_config=task.get("config_name"),
            dataset_split=task.get("test_split"),
            metric_type="accuracy",
            metric_name=name,
            metric_value=round(value, 6),
            metric_args=None if interval is None else {"ci95": [round(end, 6) for end in interval]},
        )
        for name, (value, interval) in values.items()
        if value is not None
    ]


def generated_values(metrics: Metrics) -> dict[str, tuple[float | None, Any]]:
    """Mean and selected test accuracy of the generated networks with their intervals, for [`eval_results`].

    Networks for unseen tasks have the mean over these; one that is selected among them would be for one task.
    """
    if metrics.tasks is not None:
        group = metrics.tasks.unseen["generated"]
        return {UNSEEN_METRIC: (group.accuracy, group.ci95)}
    mean, chosen = metrics.generated.test_accuracy, metrics.generated.selected
    return {MEAN_METRIC: (mean.mean, mean.ci95), SELECTED_METRIC: (chosen.test_accuracy, chosen.test_ci95)}


def seed_lines(metrics: Metrics) -> list[str]:
    """The seeds of the runs, or that of an evaluation."""
    if metrics.seeds:
        return [f"Seeds of the runs that are reported together: {', '.join(map(str, metrics.seeds))}"]
    return [] if metrics.seed is None else [f"Seed of the evaluation: {metrics.seed}"]


def find(value: Any, *keys: str) -> Any:
    """What is under nested keys of metadata, which may be anybody's; `None` when there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def base_model_id(base_model: Mapping | None) -> str | None:
    """The Hub repository that a base model's weights are from, or were begun with; `None` if it has none."""
    if base_model is None:
        return None
    if base_model["library"] == "timm" and base_model["kwargs"].get("pretrained"):
        config = timm.models.get_pretrained_cfg(base_model["name"])
        return None if config is None else config.hf_hub_id
    return hub_id(base_model.get("repo"))


def base_model_text(base_model: Mapping | None) -> str:
    """A base model as words."""
    if base_model is None:
        return "a network that is not described here"
    library = "" if base_model["library"] == "import" else f"{base_model['library']} "
    return f"{library}{code(base_model['name'])}"


def short_name(base_model: Mapping | None) -> str:
    """A base model's name for titles, without the module of a factory."""
    if base_model is None:
        return "a network"
    name = one_line(base_model["name"])
    return name.rpartition(":")[2] if base_model["library"] == "import" else name


def tensors_text(layout: Mapping) -> str:
    """Number and names of the tensors of a layout."""
    names = [code(tensor["name"]) for tensor in layout["tensors"]]
    shown = ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
    return f"{'1 tensor' if len(names) == 1 else f'{len(names)} tensors'}, {shown}"


def build_arguments(base_model: Mapping) -> str:
    """Arguments in a snippet that builds a base model; modules of others have to be named."""
    is_known = base_model["library"] != "import" or base_model["name"].partition(":")[0] == OWN_FACTORIES
    return "" if is_known else f"trusted_imports=[{literal(base_model['name'])}]"
