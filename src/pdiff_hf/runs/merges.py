"""Merges of the adapters of a dataset as groups of an evaluation, and the table of all of them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..adapters.gauge import lora_pairs
from ..data.dataset import ParameterDataset
from ..data.vectors import Vectors
from ..evaluation.groups import Groups, find_group
from ..evaluation.intervals import accuracy_difference, exact_interval, mean_interval
from ..evaluation.merging.adapters import EXACT, AdapterMerge, AdapterMerger
from ..evaluation.scores import NetworkEvaluator, NetworkScores
from ..layout import ParameterLayout
from ..results.metrics import Metrics
from ..results.records import Difference, Merge

FACTOR = re.compile(r"\.lora_(embedding_)?[AB]\.\w+(\.weight)?$")
DESCRIPTION = "the exact mean of what all adapters add"

# Evaluators on validation and on test examples, of a network and a layout.
Judge = Callable[[nn.Module, ParameterLayout], tuple[NetworkEvaluator, NetworkEvaluator]]


@dataclass
class RunMerges:
    """What merging the adapters of a run has found."""

    merger: AdapterMerger
    merges: dict[str, AdapterMerge]

    def give_to(self, groups: Groups) -> None:
        """Those that are rows of the layout are groups as all others."""
        for name, merge in self.merges.items():
            if merge.row is not None:
                groups.give(name, merge.row)
                groups.seconds[name] = merge.seconds
                if merge.chosen:
                    groups.chosen[name] = merge.chosen

    def results(self, metrics: Metrics, judge: Judge, generated: NetworkScores) -> dict[str, Merge]:
        """All of them, with what `metrics` say of those that are groups.

        Args:
            judge (`Callable`): Makes the evaluators of the exact mean, which is a network of its own.
            generated ([`NetworkScores`]): Of the generated networks, on test examples.
        """
        found = {}
        for name, merge in self.merges.items():
            own = Merge(
                num_adapters=len(self.merger.rows),
                rank=merge.rank,
                identity_error=merge.identity_error,
                identity_error_as_is=merge.identity_error_as_is,
                delta_error=merge.delta_error,
                reload_error=merge.reload_error,
                chosen=merge.chosen,
                description=DESCRIPTION if name == EXACT else find_group(name).description,
                note=merge.note,
            )
            if name in metrics.groups:
                selected = metrics.groups[name].selected.model_dump(exclude_unset=True, exclude={"index"})
                own = own.model_copy(update=selected)
                if name in metrics.comparisons:
                    own.difference = metrics.comparisons[name]
            elif name == EXACT:
                own = own.model_copy(update=self._judge_exact(judge, generated))
            found[name] = own
        return found

    def _judge_exact(self, judge: Judge, generated: NetworkScores) -> dict:
        layout = ParameterLayout.from_model(self.merger.exact, "adapter")
        vector = layout.flatten(self.merger.exact)[None]
        val, test = judge(self.merger.exact, layout)
        on_test = test.predict(vector)
        on_val, scores = on_test if test is val else val.predict(vector), on_test.scores
        kind = "accuracy" if test.metric.is_accuracy else "score"
        interval = (
            exact_interval(scores.sum().item(), scores.shape[1]) if kind == "accuracy" else mean_interval(scores)
        )
        difference = Difference(**accuracy_difference(generated.scores, scores))
        return {
            f"val_{kind}": on_val.score.item(),
            f"test_{kind}": on_test.score.item(),
            "test_ci95": interval,
            "difference": difference,
        }


def merge_adapters(
    dataset: ParameterDataset, rows: Vectors, worth: Callable[[Vectors], torch.Tensor] | None, seed: int = 0
) -> RunMerges | None:
    """Merge the adapters `(n, D)` in every way; `None` where the rows are none, or their factors have no gauge.

    `worth` says what rows are worth on the validation examples; without it, weights are the first ones.
    """
    layout = dataset.layout
    if dataset.base_model.adapter is None or not lora_pairs(layout):
        return None
    loose = [s.name for s in layout.tensors if FACTOR.search(s.name) and s.transform != "canonical_lora"]
    if loose:
        warnings.warn(
            f"Merges of adapters are left out: the factors of {loose[0]!r} do not count by their product alone.",
            stacklevel=2,
        )
        return None
    merger = AdapterMerger(dataset.base_model, layout, rows, worth, seed)
    return RunMerges(merger, merger.merge_all())
