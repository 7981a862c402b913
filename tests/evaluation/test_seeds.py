import json

import pytest
import torch
from scipy import stats

from pdiff_hf.evaluation.summary import aggregate_seeds
from pdiff_hf.results.metrics import Metrics


def run(gain, num_test=100, nll=0.5):
    group = {
        "n": 10,
        "test_accuracy": {"mean": 0.8 + gain, "std": 0.01, "ci95": [0, 1]},
        "test_nll": {"mean": nll, "ci95": [0, 1]},
        "selected": {"index": 3, "test_accuracy": 0.9 + gain, "test_ci95": [0, 1]},
        "similarity": {"l2_nearest_mean": 2 + gain, "ci95": {"l2_nearest_mean": [0, 9]}},
        "spread": 1.0,
        "novel_and_performant": {
            "performant": 0.5,
            "novel": {"1x": 1.0},
            "joint": {"1x": 0.5 + gain},
            "copied": 0.0,
            "ci95": {"performant": [0, 1], "joint": {"1x": [0, 1]}},
        },
    }
    return Metrics.from_dict(
        {
            "schema": 1,
            "task": {"dataset": "digits"},
            "num_parameters": 7,
            "num_test": num_test,
            "groups": {"generated": group},
            "comparisons": {"original": {"difference": gain, "ci95": [-1, 1]}},
            "finding": "no_gain",
            "verdict": "of one run",
            "timings_s": {"collect": 3.0},
            "versions": {"torch": "2"},
        }
    )


def test_means_and_t_intervals_over_seeds():
    gains = [0.01, 0.02, 0.04]
    metrics = json.loads(
        json.dumps(aggregate_seeds({5: run(0.01), 6: run(0.02), 7: run(0.04)}).to_dict(), allow_nan=False)
    )
    comparison = metrics["comparisons"]["original"]
    half = stats.t.ppf(0.975, 2) * stats.sem(gains)
    mean = sum(gains) / 3
    assert comparison["difference"] == pytest.approx(mean)
    assert comparison["ci95"] == pytest.approx([mean - half, mean + half])
    assert comparison["per_seed"] == gains
    group = metrics["groups"]["generated"]
    for found, center in (
        (group["test_accuracy"]["ci95"], 0.8 + mean),
        (group["selected"]["test_ci95"], 0.9 + mean),
        (group["similarity"]["ci95"]["l2_nearest_mean"], 2 + mean),
        (group["novel_and_performant"]["ci95"]["joint"]["1x"], 0.5 + mean),
    ):
        assert found == pytest.approx([center - half, center + half])
    assert group["n"] == 10 and metrics["seeds"] == [5, 6, 7] and metrics["schema"] == 2
    assert metrics["task"] == {"dataset": "digits"} and metrics["versions"] == {"torch": "2"}
    assert "index" not in group["selected"]


def test_verdict_is_that_of_the_seeds_together():
    # Each run alone finds nothing; together they agree on a gain.
    same = aggregate_seeds({seed: run(0.02 + 0.001 * seed) for seed in range(4)})
    assert same.finding == "better" and same.verdict != "of one run"
    torn = aggregate_seeds({0: run(0.05), 1: run(-0.03), 2: run(0.01)})
    assert torn.finding == "no_gain"


def test_numbers_that_do_not_exist_stay_so():
    metrics = aggregate_seeds({0: run(0.0), 1: run(0.0, nll=None)}).to_dict()
    assert metrics["groups"]["generated"]["test_nll"]["mean"] is None
    assert metrics["groups"]["generated"]["test_nll"]["ci95"] is None
    torch.testing.assert_close(metrics["groups"]["generated"]["test_accuracy"]["mean"], 0.8)


def test_different_runs_are_refused():
    with pytest.raises(ValueError, match=r"at least 2 seeds, found 1"):
        aggregate_seeds({0: run(0.0)})
    with pytest.raises(ValueError, match=r"same recipe, found num_test \[100, 200\]"):
        aggregate_seeds({0: run(0.0), 1: run(0.0, num_test=200)})
