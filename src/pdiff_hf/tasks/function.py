"""Networks of any kind, judged by a function of the user's own from an `nn.Module` to a number or to scores."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from torch import nn

from ..evaluation.scores import ScoreEvaluator
from ..hub.snapshot import without_paths
from ..identity import NetworkIdentity
from ..layout import ParameterLayout
from ..own_code import load_object
from ..results.metric import ACCURACY, Metric
from ..trust import may_run
from ..wording import argument
from .config import FunctionConfig
from .splits import Split

SPLIT = "split"


class FunctionTask:
    """What a function says of networks: a number, or a score of every example.

    A function with an argument `split` is called with `"val"` by what chooses networks and with `"test"` by what is
    reported; any other says the same of both.

    Args:
        config ([`FunctionConfig`] or `Mapping`): Which function, and what its scores are.
        trusted_imports (`Sequence[str]`, *optional*): What may be run: references of functions, files, modules; beside
            what was typed before, see [`pdiff_hf.trust`].

    Attributes:
        config ([`FunctionConfig`]): The configuration with nothing left open.
        metric ([`Metric`]): Name and direction of the scores.
        has_splits (`bool`): Whether the function tells `val` from `test`.

    Raises:
        ValueError: the function is not trusted, cannot be loaded or called, or its metric has the name `accuracy`.
    """

    def __init__(self, config: FunctionConfig | Mapping[str, Any], trusted_imports: Sequence[str] = ()):
        config = FunctionConfig.model_validate(config)
        name = config.function
        if not may_run(name, {}, trusted_imports):
            trust = argument("trusted_imports", f"[{name!r}]", name)
            task = argument("task", repr(name), name)
            raise ValueError(
                f"{name!r} is code that is not run unasked; if you trust it, give {trust}, or name it yourself: {task}"
                "."
            )
        self._function = load_object(name)
        if not callable(self._function):
            raise ValueError(f"{name}: expected a function of a network, found {type(self._function).__name__}.")
        metric = config.metric or getattr(self._function, "metric", "score")
        if not isinstance(metric, str) or not metric or metric == ACCURACY:
            raise ValueError(
                f"{name}: expected a name for its scores, found {metric!r}; {ACCURACY} is that of classifications, "
                "which need a data set as a task."
            )
        higher = config.higher_is_better
        higher = getattr(self._function, "higher_is_better", True) if higher is None else higher
        if not isinstance(higher, bool):
            raise ValueError(f"{name}: expected higher_is_better to be True or False, found {higher!r}.")
        self.config = config.model_copy(update={"metric": metric, "higher_is_better": higher})
        self.metric = Metric(name=metric, higher_is_better=higher)
        try:
            self.has_splits = SPLIT in inspect.signature(self._function).parameters
        except ValueError:  # of a function that is written in C
            self.has_splits = False

    def evaluator(
        self,
        split: Split,
        model: nn.Module,
        layout: ParameterLayout,
        identity: NetworkIdentity | None = None,
        accelerator: Accelerator | None = None,
    ) -> ScoreEvaluator:
        """What judges networks, see [`ScoreEvaluator`]."""
        arguments = {SPLIT: split} if self.has_splits else {}
        name = self.config.function
        return ScoreEvaluator(self._function, model, layout, self.metric, name, arguments, accelerator, identity)

    def describe(self) -> dict[str, Any]:
        """As JSON, the function's file by its name only."""
        return {**without_paths(self.config.model_dump(mode="json")), "has_splits": self.has_splits}
