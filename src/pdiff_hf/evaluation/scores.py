"""What networks are worth: one interface for all that judges them, and the judge that is a function of the user's."""

from __future__ import annotations

import copy
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ..data.vectors import Vectors
from ..identity import NetworkIdentity
from ..layout import ParameterLayout
from ..own_code import errors_of_code
from ..results.metric import Metric


class NetworkScores(ABC):
    """What `B` networks are worth on `N` examples."""

    @property
    @abstractmethod
    def scores(self) -> torch.Tensor:
        """What every example adds to the mean `(B, N)`, in the metric's unit."""

    @property
    def score(self) -> torch.Tensor:
        """Means over the examples `(B,)`."""
        return self.scores.mean(1)

    @property
    def ties(self) -> torch.Tensor:
        """What decides between networks of equal scores `(B,)`: less is better, NaN for one that is not finite."""
        return torch.where(self.scores.isfinite().all(1), 0.0, torch.nan)


class NetworkEvaluator(ABC):
    """Judges networks that share a base model and differ in the tensors of a layout.

    Attributes:
        layout ([`ParameterLayout`]): Which tensors the vectors hold.
        metric ([`Metric`]): What it measures.
        num_examples (`int`): How many scores a network gets, one of every example.
        batch_size (`int`): How many of them come together.
        rows (`torch.Tensor` of shape `(K,)`, *optional*): Of the networks of a dataset, by which of several labels
            each is judged, where that is known.
    """

    layout: ParameterLayout
    metric: Metric
    num_examples: int
    batch_size: int
    rows: torch.Tensor | None = None
    _identity: NetworkIdentity | None = None
    _accelerator: Accelerator | None = None

    @abstractmethod
    def predict(self, vectors: Vectors) -> NetworkScores:
        """Judge networks `(B, D)` of raw parameter values."""

    def score(self, vectors: Vectors, **options: Any) -> torch.Tensor:
        """Scores `(B,)` of networks `(B, D)`, in the metric's unit; `options` are those of [`predict`]."""
        return self.predict(vectors, **options).score

    def worth(self, vectors: Vectors) -> torch.Tensor:
        """Scores `(B,)` of which more is always better, see [`Metric.worth`]."""
        return self.metric.worth(self.score(vectors))

    def identity_for(self, other: NetworkIdentity) -> NetworkIdentity:
        """What is compared with `other`: of an evaluator that was not told its network, the layout alone."""
        return self._identity or NetworkIdentity.of("the evaluator", self.layout, other.base_model)

    def own_rows(self, vectors: Vectors) -> tuple[int, int]:
        """The first of the networks `(B, D)` that this process judges, and the one behind the last."""
        if self._accelerator is None:
            return 0, len(vectors)
        rows = torch.arange(len(vectors)).tensor_split(self._accelerator.num_processes)
        before = sum(map(len, rows[: self._accelerator.process_index]))
        return before, before + len(rows[self._accelerator.process_index])

    def check_vectors(self, vectors: Vectors) -> None:
        """Raise `ValueError` for vectors that do not fit the layout."""
        if vectors.ndim != 2 or len(vectors) == 0 or vectors.shape[1] != self.layout.num_parameters:
            raise ValueError(
                f"expected vectors (B, {self.layout.num_parameters}) with B >= 1, found {tuple(vectors.shape)}; a "
                "vector holds exactly the tensors of the layout"
            )


@dataclass
class ScoreOutput(NetworkScores):
    """Scores `(B, N)` that a function has given to `B` networks, NaN where their parameters are not finite."""

    values: torch.Tensor

    @property
    def scores(self) -> torch.Tensor:
        """The values."""
        return self.values


class ScoreEvaluator(NetworkEvaluator):
    """Judges networks of any kind by a function from an `nn.Module` to a number, or to a score of every example.

    The function gets a copy of the network in eval mode on the CPU, and may do with it what it likes. Random numbers
    of torch, NumPy and Python are the same in every call, so that networks are compared in the same conditions.

    Args:
        function (`Callable`): Gives a number, or scores `(N,)` of examples as a tensor, an array or a list: finite,
            and of every network as many.
        model (`nn.Module`): The base model with all of its weights; it is not changed.
        layout ([`ParameterLayout`]): Which tensors the vectors hold.
        metric ([`Metric`]): Name and direction of the scores.
        name (`str`): Of the function in messages.
        arguments (`dict`, *optional*): Further keyword arguments of the function.
        accelerator (`accelerate.Accelerator`, *optional*): Its processes share the networks of [`predict`]. Only this
            process by default.
        identity ([`NetworkIdentity`], *optional*): Which network model and layout are, for comparison with others.

    Raises:
        ValueError: the layout does not fit the model, or the function fails on the model as it is.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        model: nn.Module,
        layout: ParameterLayout,
        metric: Metric,
        name: str,
        arguments: dict[str, Any] | None = None,
        accelerator: Accelerator | None = None,
        identity: NetworkIdentity | None = None,
    ):
        layout.check(model)
        self.layout, self.metric = layout, metric
        self._function, self._model, self._name = function, model, name
        self._arguments, self._accelerator, self._identity = arguments or {}, accelerator, identity
        self.num_examples = self.batch_size = len(self._call(copy.deepcopy(model)))

    def predict(self, vectors: Vectors) -> ScoreOutput:
        """Judge networks `(B, D)` of raw parameter values, one after another.

        Raises:
            ValueError: the vectors do not fit the layout, or the function raises or gives something else than its
                finite scores.
        """
        self.check_vectors(vectors)
        start, stop = self.own_rows(vectors)
        values = torch.full((stop - start, self.num_examples), torch.nan, dtype=torch.float64)
        for row in range(stop - start):
            vector = vectors[start + row : start + row + 1][0]
            if not vector.isfinite().all():
                continue
            network = copy.deepcopy(self._model)
            self.layout.load_into(network, vector)
            found = self._call(network)
            if len(found) != self.num_examples:
                raise ValueError(
                    f"{self._name}: expected {self.num_examples} scores of every network, as of the first one, found "
                    f"{len(found)}; score the same examples always."
                )
            values[row] = found
        if self._accelerator is not None:
            values = torch.cat(gather_object([values]))
        return ScoreOutput(values)

    def _call(self, network: nn.Module) -> torch.Tensor:
        """Scores `(N,)` of a network, float64."""
        # The scores of a potential may be made of gradients.
        with errors_of_code(self._name), fixed_randomness(), torch.enable_grad():
            found = self._function(network.eval(), **self._arguments)
        try:
            values = torch.as_tensor(found).detach().cpu().to(torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{self._name}: expected a number or scores (N,) of a network, found {type(found).__name__}; return "
                "such."
            ) from error
        if values.ndim > 1 or values.numel() == 0:
            raise ValueError(
                f"{self._name}: expected a number or scores (N,) of a network, found the shape {tuple(values.shape)}; "
                "return one number for each example, or their mean."
            )
        values = values.reshape(-1)
        if not (is_finite := values.isfinite()).all():
            raise ValueError(
                f"{self._name}: expected finite scores of a network, found {values[~is_finite][0].item()}; return a "
                "bad score for a network that fails."
            )
        return values


@contextmanager
def fixed_randomness() -> Iterator[None]:
    """Start the random numbers of torch, NumPy and Python from the seed 0 in the block; then they go on as before."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
