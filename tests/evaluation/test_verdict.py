"""Planted cases: what is known about the networks must be what the verdict says."""

import pytest
import torch

from pdiff_hf.base_model import BaseModel
from pdiff_hf.evaluation.baselines import averages, noised_originals
from pdiff_hf.evaluation.evaluate import evaluate_groups
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.evaluation.groups import build_groups
from pdiff_hf.evaluation.verdict import make_verdict
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.results.metrics import Metrics
from pdiff_hf.results.records import Difference
from pdiff_hf.tasks.base_training import train_base_model
from pdiff_hf.tasks.config import BaseTrainingConfig, CollectConfig
from pdiff_hf.tasks.image_classification import ImageClassification, ImageClassificationConfig
from pdiff_hf.tasks.train_selection import train_selection


@pytest.fixture(scope="module")
def setting():
    """40 checkpoints of a briefly trained perceptron on digits, and 20 of the same one trained much longer."""
    task = ImageClassification(ImageClassificationConfig())
    torch.manual_seed(0)
    network = BaseModel.imported("pdiff_hf.tasks.networks:mlp3").build()
    train_base_model(task, network, BaseTrainingConfig(epochs=6, learning_rate=5e-3), device="cpu", progress=False)
    layout = ParameterLayout.from_model(network)

    def checkpoints(num, every, learning_rate):
        config = CollectConfig(select="all", num_checkpoints=num, every=every, learning_rate=learning_rate)
        return torch.stack([layout.flatten(network) for _ in train_selection(task, network, layout, config)])

    originals = checkpoints(40, 1, 1e-2)
    checkpoints(2, 150, 1e-2)
    trained = checkpoints(20, 1, 1e-3)
    val, test = (ParameterEvaluator(network, layout, *task.arrays(split)) for split in ("val", "test"))
    return layout, originals, trained, val, test


def judge(setting, generated):
    layout, originals, _, val, test = setting
    groups, _ = build_groups(originals, generated, layout, val_worth=val.worth)
    metrics = evaluate_groups(groups, val, test).metrics
    return metrics.finding, metrics.verdict


def test_originals_returned_are_called_copying(setting):
    finding, sentence = judge(setting, setting[1][5:25])
    assert finding == "copying"
    assert sentence.startswith("The generator copies: 100 % of its networks")


def test_averages_returned_are_called_averaging(setting):
    # Other draws than those of the baseline.
    finding, sentence = judge(setting, averages(setting[1], 20, torch.Generator().manual_seed(7)))
    assert finding == "averaging"
    assert sentence.startswith("No better than averaging: ")


def test_noise_returned_is_called_worse(setting):
    layout, originals = setting[:2]
    noise = noised_originals(originals, layout, 20, torch.Generator().manual_seed(7), sigma=0.5)
    finding, sentence = judge(setting, noise)
    assert finding == "worse"
    assert sentence.startswith("Generated networks are worse than the originals (−")


def test_networks_trained_further_are_called_better(setting):
    finding, sentence = judge(setting, setting[2])
    assert finding == "better"
    assert sentence.startswith("Generated networks are better than the originals (+")


def test_redrawn_originals_with_a_little_noise_are_no_gain(setting):
    layout, originals = setting[:2]
    noise = noised_originals(originals, layout, 20, torch.Generator().manual_seed(7), sigma=0.02)
    assert judge(setting, noise)[0] == "no_gain"


def test_draws_of_the_originals_own_distribution_lose_singly_and_not_on_average(setting):
    """What one network loses against an average of many is no fault of the draws."""
    layout, originals, _, val, test = setting
    draws = noised_originals(originals, layout, 40, torch.Generator().manual_seed(7), sigma=0.02)
    metrics = evaluate_groups(build_groups(originals, draws, layout)[0], val, test).metrics
    assert metrics.comparisons["uniform_soup"].sign == -1, "the planted case must tell the two comparisons apart"
    assert metrics.soup_comparisons["uniform_soup"].sign == 0
    assert "generated_uniform_soup" in metrics.groups and "generated_uniform_soup" not in metrics.rivals()


def comparison(low, high):
    return {"difference": (low + high) / 2, "ci95": [low, high]}


def planted(spread=1.0, copied=0.0, novel=1.0, **comparisons):
    scores = {"novel": {"1x": novel}, "joint": {"1x": 0.5}, "copied": copied}
    group = {"novel_and_performant": scores, "spread": spread}
    groups = {"generated": group, **{name: {} for name in comparisons}}
    return Metrics.from_dict({"groups": groups, "comparisons": comparisons})


ZERO, UP, DOWN = comparison(-0.001, 0.002), comparison(0.001, 0.003), comparison(-0.006, -0.002)


@pytest.mark.parametrize(
    ("metrics", "finding"),
    [
        (planted(original=UP, average_16=UP, uniform_soup=UP, greedy_soup=UP), "better"),
        (planted(original=UP, average_16=UP, uniform_soup=UP, greedy_soup=ZERO), "averaging"),
        (planted(original=UP, average_16=DOWN, uniform_soup=UP), "averaging"),
        (planted(original=ZERO, average_16=ZERO, uniform_soup=ZERO), "no_gain"),
        (planted(original=ZERO, average_16=ZERO, uniform_soup=ZERO, spread=0.25), "averaging"),
        (planted(original=ZERO, average_16=UP, uniform_soup=UP, spread=0.25), "no_gain"),
        (planted(original=DOWN, average_16=ZERO, spread=0.25), "worse"),
        (planted(original=UP, average_16=UP, copied=0.5), "copying"),
        (planted(original=UP), "better"),
        (Metrics.from_dict({"groups": {"original": {}}, "comparisons": {}}), "none"),
    ],
)
def test_finding_is_that_of_the_intervals(metrics, finding):
    assert make_verdict(metrics)[0] == finding


def test_sentence_has_the_decisive_average_fine_tuning_and_novelty():
    metrics = planted(original=ZERO, average_16=ZERO, uniform_soup=DOWN, fine_tuned=DOWN)
    metrics.soup_comparisons["uniform_soup"] = Difference(**ZERO)
    assert make_verdict(metrics)[1] == (
        "Generated networks are not distinguishable from the originals (+0.05 points, 95 % interval −0.10 to +0.20), "
        "but, one network against an average, worse than the uniform soup of all originals (−0.40 points, 95 % "
        "interval −0.60 to −0.20); average against average, their uniform soup is not distinguishable from that of "
        "the originals (+0.05 points, 95 % interval −0.10 to +0.20); fine-tuning for the same "
        "time gives more (−0.40 points, 95 % interval −0.60 to −0.20 for generation); 50 % of them are both novel and "
        "performant."
    )
    assert make_verdict(planted(original=ZERO, novel=0.25))[1].endswith(
        "; only 25 % of them are farther from every original than independent originals are."
    )
