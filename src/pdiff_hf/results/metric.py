"""What networks are judged by: their accuracy, or a score of the user's own, and how its values are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from .records import Difference, Record
from .text import MISSING, percent, points, quantity, signed_number

# Whoever only reads a report would wait for it.
if TYPE_CHECKING:
    import torch

ACCURACY = "accuracy"

Values = TypeVar("Values", float, "torch.Tensor")


class Metric(Record):
    """What a network is judged by."""

    name: str = ACCURACY
    """`accuracy` of a classification, a fraction; or the name of a score, in its own unit."""
    higher_is_better: bool = True

    @property
    def is_accuracy(self) -> bool:
        """Whether it is the accuracy of predictions, of which probabilities and mistakes are known, too."""
        return self.name == ACCURACY

    @property
    def title(self) -> str:
        """Its name, with the direction where that is not understood."""
        return self.name if self.is_accuracy else f"{self.name} ({self.direction})"

    @property
    def direction(self) -> str:
        """Which values are better, as words."""
        return f"{'higher' if self.higher_is_better else 'lower'} is better"

    @property
    def not_worse(self) -> str:
        """The relation of a value that is as good, as words."""
        return "not below" if self.higher_is_better else "not above"

    @property
    def scale(self) -> float:
        """What values are multiplied by where they are drawn: accuracies are drawn in %."""
        return 100.0 if self.is_accuracy else 1.0

    def worth(self, values: Values) -> Values:
        """Values of which more is always better: those of the metric, or their negatives."""
        return values if self.higher_is_better else -values

    def sign(self, difference: Difference) -> int:
        """1 for better beyond doubt, -1 for worse, else 0: where the interval of a difference excludes zero."""
        return self.worth(difference.sign)

    def write(self, value: float | None, interval: Sequence[float] | None = None) -> str:
        """A value: `95.70 % (94.00–97.40)`, `0.0123 (0.0119–0.0127)`."""
        return percent(value, interval) if self.is_accuracy else quantity(value, interval)

    def write_difference(self, value: float | None, interval: Sequence[float] | None = None) -> str:
        """A difference with its sign, and no unit: `+0.05 (−0.06 to +0.15)`, in points of accuracy."""
        if self.is_accuracy or value is None:
            return points(value, interval)
        return signed_number(value, interval)

    def describe(self, difference: Difference) -> str:
        """A difference with its unit and interval, as a part of a sentence."""
        if difference.difference is None:
            return MISSING
        text = f"{self.write_difference(difference.difference)} {'points' if self.is_accuracy else f'in {self.name}'}"
        if difference.ci95 is None:
            return text
        low, high = map(self.write_difference, difference.ci95)
        return f"{text}, 95 % interval {low} to {high}"
