import math

import pytest
import torch

from pdiff_hf.data.order import RowOrder
from pdiff_hf.evaluation.autocorrelation import RunMemory, autocorrelation, autocorrelation_time
from pdiff_hf.models.normalizer import ParameterNormalizer


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def centred_gram(rows):
    rows = rows - rows.mean(0)
    return rows @ rows.T


def chain(phi, length, width=200):
    """AR(1) of unit variance; its integrated autocorrelation time is (1 + phi) / (1 - phi)."""
    noise = gaussian(length, width)
    rows = [noise[0]]
    for step in noise[1:]:
        rows.append(phi * rows[-1] + math.sqrt(1 - phi**2) * step)
    return torch.stack(rows)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.8, 0.95])
def test_autocorrelation_time_of_a_chain_is_the_known_one(phi):
    correlations = autocorrelation(centred_gram(chain(phi, 2000)))
    assert correlations[:4].tolist() == pytest.approx([phi**lag for lag in range(4)], abs=0.02)
    # The mean of the same rows takes about τ / n from every correlation, over about 3 τ lags on both sides.
    time = (1 + phi) / (1 - phi)
    assert autocorrelation_time(correlations) == pytest.approx(time, rel=6 * time / 2000 + 0.02)


def test_rows_that_drift_count_like_few():
    drift = torch.linspace(0, 1, 300, dtype=torch.float64)[:, None] * gaussian(1, 50)
    assert 300 / autocorrelation_time(autocorrelation(centred_gram(drift))) < 5


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_and_constant_runs_have_a_time_between_one_and_their_length(length):
    for rows in (torch.zeros(length, 4, dtype=torch.float64), gaussian(length, 4)):
        assert 1 <= autocorrelation_time(autocorrelation(centred_gram(rows))) <= length


def test_rows_are_ordered_by_the_time_of_their_run():
    order = RowOrder(["a", "b", "a", "a"], [(30, 30), (0, 0), (10, 10), (20, 20)])
    assert order.by_run() == {"a": [2, 3, 0], "b": [1]}
    assert order.by_run([0, 1, 3]) == {"a": [2, 0], "b": [1]}


def measure(vectors, order):
    normalizer = ParameterNormalizer(vectors.shape[1], "per_parameter")
    normalizer.fit(vectors.float())
    return RunMemory.measure(vectors.float(), order, normalizer)


def test_memory_of_shuffled_rows_is_that_of_their_runs():
    phi, length = 0.8, 400
    vectors = torch.cat([chain(phi, length), gaussian(100, 200, seed=1)])
    order = RowOrder(["chain"] * length + ["white"] * 100, [(step, step) for step in [*range(length), *range(100)]])
    memory = measure(vectors, order)
    correlations = autocorrelation(centred_gram(vectors[:length] / vectors.std(0)))
    assert memory.times.tolist() == pytest.approx([autocorrelation_time(correlations), 1], rel=0.1)
    assert memory.times[0] > 6, "(1 + φ) / (1 - φ) is 9"
    assert memory.effective_size == pytest.approx(length / memory.times[0] + 100 / memory.times[1])
    rows = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
    shuffled = RowOrder([order.runs[row] for row in rows], [order.times[row] for row in rows])
    again = measure(vectors[rows], shuffled)
    assert again.effective_size == pytest.approx(memory.effective_size, rel=1e-6)
    first = int(again.runs[(rows == 0).nonzero()[0, 0]])
    assert torch.equal(again.places[again.runs == first], rows[rows < length])


def test_rows_a_time_apart_and_of_other_runs_are_independent():
    memory = RunMemory(torch.tensor([0, 0, 0, 0, 1, 2, 2]), torch.tensor([0, 1, 2, 3, 0, 0, 1]),
                       torch.tensor([2.0, 1.0, 9.0], dtype=torch.float64))  # fmt: skip
    dependent = memory.dependent()
    assert dependent[1].tolist() == [True, True, True, False, False, False, False]
    assert dependent[4].tolist() == [False] * 4 + [True, False, False], "a run of its own"
    assert dependent[5].tolist() == [False] * 5 + [True, False], "the ends of a run shorter than its time"
    assert torch.equal(RunMemory.independent(3).dependent(), torch.eye(3, dtype=torch.bool))


def test_rows_in_no_known_order_have_no_effective_size_and_count_as_independent():
    order = RowOrder(["soup"] * 5, [(step, step) for step in range(5)], frozenset({"soup"}))
    memory = measure(gaussian(5, 20), order)
    assert memory.effective_size is None and math.isnan(memory.times[0])
    assert torch.equal(memory.dependent(), torch.eye(5, dtype=torch.bool))


def test_independent_rows_are_counted_run_by_run():
    runs, places = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])
    assert RunMemory(runs, places, torch.tensor([3.0, 1.0])).count_independent() == 6 / 3 + 2
    # Of an unknown order nothing is taken off; rows that are all equal count as two, of one there is no interval.
    assert RunMemory(runs, places, torch.tensor([3.0, math.nan])).count_independent() == 6 / 3 + 2
    assert RunMemory(runs[:6], places[:6], torch.tensor([6.0])).count_independent() == 2
    assert RunMemory.independent(7).count_independent() == 7
    assert RunMemory.independent(1).count_independent() == 1
