"""How the numbers of a report were measured, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..results.metrics import Metrics

SPLITS = (
    "Three disjoint sets of examples: networks are trained on the first, anything chosen (the best network of a "
    "group, the greedy soup) is chosen on the second, val, and everything reported is measured on the third, test."
)
# Of networks that a function judges, which knows two of these sets or none.
FUNCTION_SPLITS = (
    "Networks are scored by a function, {function}. Anything chosen (the best network of a group, the greedy soup) is "
    "chosen by its scores of the split val, and everything reported is that of the split test."
)
NO_SPLITS = (
    "Networks are scored by a function, {function}, which has no argument `split`: the best network of a group is "
    "chosen by the scores that are reported, which flatters it, and greedy soups, which would be chosen so, are left "
    "out."
)
PROTOCOL = (
    "Every group goes through the same evaluation. Baselines have as many draws as the generator; soups are one "
    "network.",
    "Originals are compared with the other originals, never with themselves.",
    "The verdict follows from the intervals: a difference counts when its interval excludes zero.",
)
TASK_PROTOCOL = (
    "Every network is judged by the labels of the task that it was made for. What a way leaves open is chosen on "
    "validation tasks and validation examples; unseen tasks and test examples are used for the report alone.",
    "The verdict follows from the intervals: a difference counts when its interval excludes zero.",
)
NO_PREDICTIONS = (
    "Left out, as a score knows nothing of predictions: shared mistakes (IoU), calibration, ensembles, the comparison "
    "of populations as functions, and fine-tuning."
)
NO_FINE_TUNING = (
    "One baseline was left out: fine-tuning for as long as the generator took. `pdiff evaluate RUN --fine-tune` "
    "adds it."
)


def protocol(metrics: Metrics) -> list[str]:
    """Rules, what was left out and why, and what the intervals are over, a paragraph each."""
    if metrics.tasks is not None:
        return [*TASK_PROTOCOL, metrics.intervals, *_precision(metrics.hardware or {})]
    is_accuracy, left_out = metrics.metric.is_accuracy, []
    if not is_accuracy:
        left_out = [NO_PREDICTIONS]
    elif metrics.generated.cost.seconds is not None and "fine_tuned" not in metrics.groups:
        left_out = [NO_FINE_TUNING]
    splits = SPLITS if is_accuracy else FUNCTION_SPLITS if metrics.task.get("has_splits") else NO_SPLITS
    splits = splits.format(function=metrics.task.get("function", "of which no name is known"))
    return [splits, *PROTOCOL, *left_out, metrics.intervals, *_precision(metrics.hardware or {})]


def _precision(hardware: Mapping[str, Any]) -> list[str]:
    """On what networks were evaluated, and in which precision; earlier versions did not note it."""
    if (device := hardware.get("device")) is None:
        return []
    if device == "cpu":
        return ["Evaluated on the CPU, with products in float32."]
    memory, tf32 = hardware.get("device_memory_gb"), hardware.get("tf32")
    room = "" if memory is None else f" with {memory:g} GiB of memory"
    if tf32 is None:
        return [f"Evaluated on {device}{room}."]
    ways = {stage: "TF32" if allowed else "float32" for stage, allowed in tf32.items()}
    return [
        f"Evaluated on {device}{room}, with products of float32 values in {ways['evaluation']}; trained with those in "
        f"{ways['training']}."
    ]
