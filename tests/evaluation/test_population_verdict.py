"""What a zoo of independent runs is told in one sentence, and what becomes of several seeds."""

import json
from pathlib import Path

import pytest

from golden_files import GOLDEN
from pdiff_hf.evaluation.summary import aggregate_seeds
from pdiff_hf.evaluation.verdict import HEADS, make_verdict, population_finding
from pdiff_hf.results.metrics import Metrics
from pdiff_hf.results.population import Population

EQUAL = {
    "accuracy": 0.955,
    "accuracy_difference": {"difference": 0.0002, "ci95": [-0.001, 0.0014]},
    "disagreement_ratio": 0.95,
    "ensemble_difference": {"difference": 0.001, "ci95": [-0.004, 0.006]},
    "ensemble_size": 100,
    "near": 0.93,
    "side": 0.94,
    "copies": 0.0,
    "n": 100,
    "ci95": {"disagreement_ratio": [0.91, 0.99], "near": [0.9, 0.96]},
}
WORSE = {"accuracy_difference": {"difference": -0.3, "ci95": [-0.31, -0.29]}}


def population(**changes):
    return {**EQUAL, **changes}


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({}, "equal_population"),
        ({"copies": 0.13, "side": 0.8}, "copying"),
        ({"side": 0.63}, "copying"),
        ({"disagreement_ratio": 0.1}, "collapsed"),
        ({"disagreement_ratio": 0.1, **WORSE}, "collapsed"),
        (WORSE, "worse"),
        ({"disagreement_ratio": 0.7}, "less_diverse"),
        ({"disagreement_ratio": 1.3}, "more_diverse"),
        ({"disagreement_ratio": None}, None),
        ({"disagreement_ratio": None, **WORSE}, "worse"),
        ({"disagreement_ratio": None, "copies": 1.0}, "copying"),
    ],
)
def test_finding_is_that_of_the_numbers(changes, finding):
    assert population_finding(Population.model_validate(population(**changes))) == finding


def metrics_of(**groups):
    """Groups by name: as populations, and how the generated networks compare with them in accuracy."""
    tie = {"difference": 0.0, "ci95": [-0.001, 0.001]}
    roles = {"generated": "generated", "uniform_soup": "average"}
    known = {
        name: {"role": roles.get(name, "baseline"), "description": f"the {name.replace('_', ' ')}"} for name in groups
    }
    comparisons = {name: values.pop("generated_minus", tie) for name, values in groups.items() if name != "generated"}
    original = {"accuracy": 0.955, "n": 100}
    return Metrics.from_dict(
        {
            "groups": {"original": {"role": "original"}, **known},
            "comparisons": comparisons,
            "population": {"original": original, **groups},
        }
    )


def test_sentence_says_what_is_equal_what_is_new_and_what_does_as_well():
    up = {"difference": 0.8, "ci95": [0.7, 0.9]}
    metrics = metrics_of(
        generated=population(),
        gaussian_latents=population(near=0.92),
        pca_gaussian=population(generated_minus=up, **WORSE),
        noise_latents=population(near=0.4, side=0.4),
        reconstructed=population(),
    )
    finding, sentence = make_verdict(metrics)
    assert finding == "equal_population"
    assert sentence == (
        "An equal population: generated networks are not distinguishable from held-out originals in accuracy (+0.02 "
        "points, 95 % interval −0.10 to +0.14), two of them disagree 0.95 (0.91–0.99) times as often as two of these, "
        "100 together are not distinguishable from as many of these (+0.10 points, 95 % interval −0.40 to +0.60); 0 % "
        "are copies of networks seen, and as functions they are 0.93 times as far from these as held-out originals "
        "are, 0.94 times as far as from networks not seen; the gaussian latents does as well."
    )


def test_what_copies_and_what_fits_are_said():
    metrics = metrics_of(
        generated=population(copies=1.0, near=0.1, side=0.1, shares={"a": 0.5, "b": 0.4}, fit_share=0.9)
    )
    finding, sentence = make_verdict(metrics)
    assert finding == "copying" and sentence.startswith("The generator gives its training networks back: ")
    assert "100 % are copies" in sentence and sentence.endswith("; 90 % fit a population of the zoo.")


def test_one_generated_network_is_no_population():
    assert make_verdict(metrics_of(generated=population(disagreement_ratio=None)))[0] == "none"


def test_seeds_are_told_together_and_one_by_one():
    near = {3: 0.9, 4: 1.0, 5: 0.95}
    runs = {
        seed: metrics_of(generated=population(near=value, shares={"a": value, "b": 0.0}))
        for seed, value in near.items()
    }
    for metrics in runs.values():
        metrics.num_parameters, metrics.num_test = 10, 20
        metrics.population["generated"].finding = "worse"
    together = aggregate_seeds(runs)
    found = together.population["generated"]
    assert found.near == pytest.approx(0.95) and found.per_seed["near"] == [0.9, 1.0, 0.95]
    # Student's t over three seeds: 4.303 standard errors.
    half = 4.303 * 0.05 / 3**0.5
    assert found.ci95.near == pytest.approx([0.95 - half, 0.95 + half], rel=1e-3)
    assert found.shares == {"a": pytest.approx(0.95), "b": 0} and found.n == 100
    assert found.accuracy_difference.per_seed == [0.0002] * 3
    assert found.finding == together.finding == "equal_population"
    assert "An equal population" in together.verdict


def test_files_without_populations_are_read():
    older = json.loads((GOLDEN / "metrics.json").read_text(encoding="utf-8"))
    for schema in (1, 2):
        metrics = Metrics.from_dict({**older, "schema": schema})
        assert metrics.population == {} and metrics.generated.test_accuracy.mean is not None
        assert make_verdict(metrics)[0] in ("copying", "worse", "no_gain", "averaging", "better")


def test_every_key_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    section = page.partition("\n## Population\n")[2].partition("\n## ")[0]
    assert [key for key in Population.model_fields if f"`{key}`" not in section] == []
    assert [finding for finding in HEADS if f"`{finding}`" not in section] == []


def test_a_population_is_written_as_it_was_read():
    metrics = metrics_of(generated={**population(), "later": 1})
    assert metrics.to_dict()["population"]["generated"] == {**population(), "later": 1}
