"""What networks do on the examples of the page: answers, mistakes and scores; and answers on what somebody draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..data.vectors import Vectors
from ..evaluation.evaluator import ParameterEvaluator
from ..forward import FullForward
from ..tasks.conditions import condition_labels
from ..tasks.function import FunctionTask
from ..tasks.populations import population_labels
from ..tasks.task import Task
from .sources import Source, quiet_evaluator

# Test examples that networks are judged on; those of the embedded digits are as many.
MAX_EXAMPLES = 500


@dataclass(frozen=True)
class Judged:
    """What `B` networks are worth on `N` examples.

    Args:
        score (`torch.Tensor` of shape `(B,)`): In the metric's unit; of an accuracy, the fraction that is right.
        predictions (`torch.Tensor` of shape `(B, N)`, *optional*): Answers, where they are classes.
        wrong (`torch.Tensor` of shape `(B, N)`, *optional*, `bool`): Mistakes.
        labels (`torch.Tensor` of shape `(B, N)`, *optional*): The right answers, -1 where there is none.
    """

    score: torch.Tensor
    predictions: torch.Tensor | None = None
    wrong: torch.Tensor | None = None
    labels: torch.Tensor | None = None


def judge_predictions(predictions: torch.Tensor, candidates: torch.Tensor) -> Judged:
    """Judge answers `(B, N)` by labels `(P, N)`, of which each network is judged by those that it fits best.

    One row of labels is that of all networks; a label of -1 is none.
    """
    known = candidates >= 0
    right = (predictions[:, None] == candidates) & known
    accuracies = right.sum(2) / known.sum(1).clamp(min=1)
    best = accuracies.argmax(1)
    labels = candidates[best]
    rows = torch.arange(len(predictions))
    return Judged(accuracies[rows, best], predictions, (predictions != labels) & (labels >= 0), labels)


def judge_own(predictions: torch.Tensor, labels: torch.Tensor) -> Judged:
    """Judge answers `(B, N)` by labels `(B, N)` of every network's own."""
    right = (predictions == labels) & (labels >= 0)
    return Judged(right.sum(1) / (labels >= 0).sum(1).clamp(min=1), predictions, ~right & (labels >= 0), labels)


class Judge:
    """Judges vectors of a pipeline's layout on up to `MAX_EXAMPLES` test examples of its task.

    Args:
        source ([`Source`]): With a task.

    Attributes:
        metric ([`Metric`]): Its name and unit.
        inputs (`torch.Tensor` of shape `(N, …)`, *optional*): The examples; none of a function.
        class_names (`list[str]`): What networks answer.

    Raises:
        ValueError: the network cannot be built, or does not take the examples.
    """

    def __init__(self, source: Source):
        pipeline, self.task = source.pipeline, source.task
        if pipeline.base_model is None:
            raise ValueError("the pipeline carries no base model that could be judged.")
        self.layout, model = pipeline.layout, pipeline.base_model.build(source.trusted_imports)
        self._dataset, self.inputs, self.class_names = source.dataset, None, []
        if isinstance(self.task, FunctionTask):
            self._evaluator = quiet_evaluator(self.task.evaluator, "test", model, self.layout, None, None)
            self.metric = self._evaluator.metric
            return
        inputs, labels = self.task.arrays("test")
        self.inputs, self._labels = inputs[:MAX_EXAMPLES], labels[:MAX_EXAMPLES]
        # By which labels networks are judged is decided here; the evaluator only computes.
        no_labels = torch.zeros(len(self.inputs), dtype=torch.int64)
        self._evaluator = quiet_evaluator(ParameterEvaluator, model, self.layout, self.inputs, no_labels)
        self.metric = self._evaluator.metric
        # As `have_own_tasks` says of a dataset, which may not be here.
        self.spec = None if pipeline.condition_encoder is None else pipeline.condition_encoder.spec
        found = None if self.spec is None else self.spec.part("classes")
        self.has_own_tasks = found is not None and {*found[0].names} <= {*self.task.class_names}
        self.class_names = self.task.class_names
        if self.has_own_tasks:
            self.class_names = ["none", "one"]
        if len(self.class_names) != self._evaluator.num_classes:
            self.class_names = [str(number) for number in range(self._evaluator.num_classes)]
        metadata = {} if self._dataset is None else self._dataset.metadata
        self._populations = list(population_labels(self.task, metadata, "test").values())
        self._forward = FullForward(model, torch.device("cpu"))

    @property
    def answers_classes(self) -> bool:
        """Whether networks answer classes, of which mistakes are told; a function gives a score alone."""
        return isinstance(self.task, Task)

    def predict(self, vectors: Vectors) -> torch.Tensor:
        """Answers `(B, N)` of networks `(B, D)`."""
        return torch.cat([logits.argmax(-1).cpu() for _, logits in self._evaluator.logits(vectors)])

    def judge(self, vectors: Vectors, condition: Mapping[str, Any] | None = None) -> Judged | None:
        """Judge networks `(B, D)` that are for a condition, by the labels of its task; `None` where it says none."""
        if not self.answers_classes:
            return Judged(self._evaluator.score(vectors).float().cpu())
        candidates = self._candidates(condition)
        return None if candidates is None else judge_predictions(self.predict(vectors), candidates)

    def judge_originals(self, vectors: Vectors, rows: torch.Tensor) -> Judged:
        """Judge originals `(K, D)`, the `rows` `(K,)` of the dataset, each by the labels of its own task."""
        if not self.answers_classes or not self.has_own_tasks:
            return self.judge(vectors)
        given = (self._dataset.condition_spec, self._dataset.conditions(rows))
        return judge_own(self.predict(vectors), condition_labels(self._labels, self.task.class_names, *given))

    def _candidates(self, condition: Mapping[str, Any] | None) -> torch.Tensor | None:
        """Labels `(P, N)` by which a network for a condition may be judged."""
        if self.has_own_tasks:
            if not isinstance((condition or {}).get("classes"), list):
                return None
            part, _ = self.spec.part("classes")
            values = torch.tensor([part.values(condition["classes"])])
            return condition_labels(self._labels, self.task.class_names, part, values)
        if self._populations:
            return torch.stack(self._populations)[:, : len(self._labels)]
        return self._labels[None]

    @torch.no_grad()
    def answer(self, vectors: Vectors, inputs: torch.Tensor) -> torch.Tensor:
        """Probabilities `(B, classes)` that networks `(B, D)` give to the classes of one input `(1, …)`."""
        forward: nn.Module = self._forward
        found = [
            forward.tail((inputs,), {name: t[0] for name, t in self.layout.unflatten(vectors[row : row + 1]).items()})
            for row in range(len(vectors))
        ]
        return torch.cat(found).softmax(-1)
