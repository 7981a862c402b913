"""What the page asks of a condition, and the condition that the answers make."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..models.condition_encoder import ConditionEncoder

# Sliders of a metric reach so many standard deviations of the training rows beyond their mean.
REACH = 2.5


@dataclass(frozen=True)
class Question:
    """One control of the page.

    Args:
        part (`str`): The kind of the condition, or of the part of a composed one.
        form (`str`): What it is answered with: several of the `choices`, one of them, a number between `low` and
            `high`, a sentence, or numbers.
        label (`str`): What is asked.
        value: The answer to begin with.
        name (`str`, *optional*): Of a metric.
    """

    part: str
    form: Literal["several", "one", "number", "sentence", "numbers"]
    label: str
    value: Any
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    name: str = ""


def list_questions(encoder: ConditionEncoder | None) -> list[Question]:
    """The controls for the conditions of a pipeline, in the order of its numbers; none without conditions."""
    found: list[Question] = []
    for spec, place in [] if encoder is None else encoder.spec.placed:
        if spec.kind == "classes":
            label = "Classes that the networks are for"
            found.append(Question("classes", "several", label, list(spec.names[:2]), spec.names))
        elif spec.kind == "label":
            found.append(Question("label", "one", "What the networks are for", spec.names[0], spec.names))
        elif spec.kind == "metric":
            means, deviations = (values[place].tolist() for values in (encoder.mean, encoder.deviation))
            for name, mean, deviation in zip(spec.names, means, deviations, strict=True):
                low, high = mean - REACH * deviation, mean + REACH * deviation
                if "accuracy" in name or "ece" in name:
                    low, high = max(0.0, low), min(1.0, high)
                label = f"Wanted {name.replace('_', ' ')}"
                low, mean, high = (float(f"{value:.4g}") for value in (low, mean, high))
                found.append(Question("metric", "number", label, mean, low=low, high=high, name=name))
        elif spec.kind == "text" and spec.encoder is not None:
            found.append(Question("text", "sentence", "What the networks should do, in a sentence", ""))
        else:
            label = f"{spec.size} numbers of the condition, with spaces between them"
            found.append(Question(spec.kind, "numbers", label, " ".join(["0"] * spec.size)))
    return found


def write_condition(questions: Sequence[Question], answers: Sequence[Any]) -> str | None:
    """The condition that answers make, as JSON; `None` where nothing is asked.

    Raises:
        ValueError: an answer is missing or no number.
    """
    if not questions:
        return None
    condition: dict[str, Any] = {}
    for question, answer in zip(questions, answers, strict=True):
        if answer is None or answer in ("", []):
            raise ValueError(f"{question.label}: give an answer, or set guidance to 0 for networks of all conditions.")
        if question.name:
            condition.setdefault(question.part, {})[question.name] = float(answer)
        elif question.form == "numbers":
            try:
                condition[question.part] = [float(number) for number in str(answer).replace(",", " ").split()]
            except ValueError as error:
                raise ValueError(f"{question.label}: expected numbers, found {str(answer)!r:.80}.") from error
        else:
            # In the order of the names, so that the order of clicks is not another request.
            several = question.form == "several"
            condition[question.part] = [name for name in question.choices if name in answer] if several else answer
    return json.dumps(condition, sort_keys=True)
