"""The order of the rows of a parameter dataset: of which run each is, and when it was taken."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class RowOrder:
    """Runs and times of rows.

    Args:
        runs (`Sequence[str]`): The run of every row.
        times (`Sequence[tuple[float, int]]`): When every row was taken: step, or epoch where steps are rows' numbers;
            and the step.
        unordered (`frozenset[str]`, *optional*): Runs whose steps say nothing of time.
    """

    runs: Sequence[str]
    times: Sequence[tuple[float, int]]
    unordered: frozenset[str] = frozenset()

    @classmethod
    def of_table(cls, table: pa.Table, unordered: Iterable[str] = ()) -> RowOrder:
        """Of the columns `run`, `step` and `epoch`."""
        runs, steps, epochs = (table.column(name).to_pylist() for name in ("run", "step", "epoch"))
        by_run = defaultdict(list)
        for run, step, epoch in zip(runs, steps, epochs, strict=True):
            by_run[run].append((step, epoch))
        numbered = {run for run, of in by_run.items() if all(s == i and e is not None for i, (s, e) in enumerate(of))}
        times = [(e if run in numbered else s, s) for run, s, e in zip(runs, steps, epochs, strict=True)]
        return cls(runs, times, frozenset(unordered))

    @classmethod
    def of_runs(cls, *num_rows: int) -> RowOrder:
        """Of rows that lie in the order in which runs took them, one after the other, so many of each."""
        runs = [str(run) for run, number in enumerate(num_rows) for _ in range(number)]
        return cls(runs, [(row, row) for row in range(len(runs))])

    def by_run(self, kept: Sequence[int] | None = None) -> dict[str, list[int]]:
        """By run the rows in the order of their time; of some rows `kept`, as places among these."""
        kept = range(len(self.runs)) if kept is None else kept
        found: dict[str, list[int]] = {self.runs[row]: [] for row in kept}
        for place in sorted(range(len(kept)), key=lambda place: self.times[kept[place]]):
            found[self.runs[kept[place]]].append(place)
        return found
