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


def with_distribution(seed, accuracy, difference):
    values = run(0.0).to_dict()
    held_out = {"loss": 1 + difference, "white_gaussian": 1.1, "gaussian": 1.0, "difference_ci95": [-9, 9], "n": 30}
    values["denoiser"] = {"kept_step": 100 * seed, "curve": {"0": 1.0}, "held_out": {"between": held_out}}
    found = {"two_sample_accuracy": accuracy, "mmd_p": 0.5, "nearest_train_ratio": accuracy + 0.5}
    values["distribution"] = {"generated": {**found, "ci95": {"nearest_train_ratio": [0, 9]}}}
    return Metrics.from_dict(values)


def test_denoisers_and_distributions_have_intervals_over_seeds():
    differences = [-0.5, -0.4, -0.45]
    runs = {seed: with_distribution(seed, 0.5 + seed / 100, d) for seed, d in enumerate(differences)}
    metrics = Metrics.from_dict(json.loads(json.dumps(aggregate_seeds(runs).to_dict(), allow_nan=False)))
    held_out = metrics.denoiser.held_out["between"]
    half = stats.t.ppf(0.975, 2) * stats.sem(differences)
    assert held_out.difference == pytest.approx(-0.45) and held_out.per_seed == pytest.approx(differences)
    assert held_out.difference_ci95 == pytest.approx([-0.45 - half, -0.45 + half])
    assert held_out.n == 30 and metrics.denoiser.kept_step == 100 and metrics.denoiser.curve == {}
    found, half = metrics.distribution["generated"], stats.t.ppf(0.975, 2) * stats.sem([1.0, 1.01, 1.02])
    assert found.two_sample_accuracy == pytest.approx(0.51)
    assert found.ci95.nearest_train_ratio == pytest.approx([1.01 - half, 1.01 + half])
    old = aggregate_seeds({0: with_distribution(0, 0.5, 0.0), 1: run(0.0)})
    assert old.denoiser is None and old.distribution == {}, "a run of 0.1 is among them"


def test_different_runs_are_refused():
    with pytest.raises(ValueError, match=r"at least 2 seeds, found 1"):
        aggregate_seeds({0: run(0.0)})
    with pytest.raises(ValueError, match=r"same recipe, found num_test \[100, 200\]"):
        aggregate_seeds({0: run(0.0), 1: run(0.0, num_test=200)})
