import json

import pytest
import torch
from torch import nn

from pdiff_hf.evaluation import ParameterEvaluator, build_groups, evaluate_groups
from pdiff_hf.evaluation.intervals import exact_interval
from pdiff_hf.evaluation.verdict import make_verdict
from pdiff_hf.layout import ParameterLayout


@pytest.fixture(scope="module")
def setting():
    """A linear classifier that knows the planted classes, 8 originals close to it, and three disjoint image splits."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 12, generator=generator)
    labels = torch.randint(4, (600,), generator=generator)
    images = (centers[labels] + 1.3 * torch.randn(600, 12, generator=generator)).reshape(600, 3, 2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with torch.no_grad():
        model[1].weight.copy_(centers)
        model[1].bias.copy_(-centers.square().sum(1) / 2)
    layout = ParameterLayout.from_model(model)
    vector = layout.flatten(model)
    originals = vector + 0.4 * torch.randn(8, len(vector), generator=generator)
    val, test = (images[:200], labels[:200]), (images[200:], labels[200:])
    return model, layout, vector, originals, val, test


def run(setting, groups):
    model, layout, _, _, val, test = setting
    return evaluate_groups(groups, model, layout, val=val, test=test)


def test_metrics_have_the_documented_form_and_are_json(setting):
    _, layout, vector, originals, _, _ = setting
    result = run(setting, build_groups(originals, vector + torch.zeros(5, 1), layout, reconstructed=originals))
    metrics = json.loads(json.dumps(result.metrics, allow_nan=False))
    assert metrics["schema"] == 1
    assert metrics["num_parameters"] == layout.num_parameters
    assert metrics["num_test"] == 400
    names = ["original", "reconstructed", "generated", "uniform_soup", "average_16", "noise_0.05", "noise_0.1"]
    names += ["gaussian", "pca_gaussian", "interpolation"]
    assert list(metrics["groups"]) == names
    for group in metrics["groups"].values():
        for metric in ("test_accuracy", "test_nll", "test_ece"):
            assert {"mean", "std", "min", "max"} <= set(group[metric])
        assert {"val_accuracy", "test_accuracy", "test_ci95"} <= set(group["selected"])
        assert set(group["similarity"]) == {"iou_mean", "iou_max_mean", "l2_nearest_mean", "l2_nearest_min"}
        assert set(group["novel_and_performant"]) == {"performant", "novel", "joint"}
    assert set(metrics["comparisons"]) == set(names) - {"generated"}


def test_selection_is_on_val_and_reported_on_test(setting):
    model, layout, _, originals, val, test = setting
    group = run(setting, {"original": originals}).metrics["groups"]["original"]
    on_val = ParameterEvaluator(model, layout, *val).predict(originals)
    on_test = ParameterEvaluator(model, layout, *test).accuracy(originals)
    best = (on_val.accuracy == on_val.accuracy.max()).nonzero()[:, 0].tolist()
    chosen = group["selected"]["index"]
    assert len(best) > 1, "the planted case must have a tie, which the validation NLL breaks"
    assert chosen == min(best, key=lambda index: on_val.nll[index])
    assert on_test[chosen] < on_test.max(), "the planted case must tell the two splits apart"
    assert group["selected"]["val_accuracy"] == on_val.accuracy[chosen].item()
    assert group["selected"]["test_accuracy"] == on_test[chosen].item()
    assert group["selected"]["test_ci95"] == exact_interval(round(on_test[chosen].item() * 400), 400)
    assert group["test_accuracy"]["mean"] == pytest.approx(on_test.mean().item())


def test_originals_are_compared_with_the_other_originals(setting):
    originals = setting[3]
    result = run(setting, {"original": originals})
    distances = torch.cdist(originals, originals).fill_diagonal_(float("inf")).min(1).values
    torch.testing.assert_close(result.groups["original"].l2_nearest, distances, atol=1e-5, rtol=0)
    assert (result.groups["original"].iou_max < 1).all()


def test_copies_are_neither_novel_nor_called_so(setting):
    result = run(setting, {"original": setting[3], "generated": setting[3].flip(0)})
    scores = result.metrics["groups"]["generated"]["novel_and_performant"]
    assert scores["novel"] == {"1x": 0, "2x": 0, "4x": 0}
    assert result.metrics["groups"]["generated"]["similarity"]["iou_max_mean"] == 1
    assert "not distinguishable from the originals" in result.metrics["verdict"]
    assert "only 0% of them are farther from every original" in result.metrics["verdict"]


def test_better_and_worse_networks_are_called_so(setting):
    _, layout, vector, originals, _, _ = setting
    noise = torch.randn(20, len(vector), generator=torch.Generator().manual_seed(1))
    better = run(setting, build_groups(originals, vector + 0.01 * noise, layout))
    assert "better than the originals" in better.metrics["verdict"]
    worse = run(setting, build_groups(originals, vector + 2 * noise, layout))
    assert "worse than the originals" in worse.metrics["verdict"]
    verdict = worse.metrics["verdict"]
    assert "worse than" in verdict and "and the uniform soup of all originals" in verdict and ", but" not in verdict


def test_novel_counts_multiples_of_the_yardstick(setting):
    originals = setting[3]
    yardstick = torch.cdist(originals, originals).fill_diagonal_(float("inf")).min(1).values.mean()
    direction = torch.zeros(originals.shape[1])
    direction[-4:] = 0.5  # the same for every bias: logits move, predictions stay
    generated = originals[:1] + direction * yardstick * torch.tensor([[0.9], [1.1], [2.1], [4.1]])
    scores = run(setting, {"original": originals, "generated": generated}).metrics["groups"]["generated"]
    assert scores["novel_and_performant"]["novel"] == {"1x": 0.75, "2x": 0.5, "4x": 0.25}


def test_one_original_leaves_similarity_among_originals_open(setting):
    metrics = run(setting, {"original": setting[3][:1], "generated": setting[3][1:]}).metrics
    assert metrics["groups"]["original"]["similarity"] == dict.fromkeys(
        ("iou_mean", "iou_max_mean", "l2_nearest_mean", "l2_nearest_min")
    )
    json.dumps(metrics, allow_nan=False)


def test_groups_need_originals(setting):
    with pytest.raises(ValueError, match=r"expected a group 'original'.*found \['generated'\]"):
        run(setting, {"generated": setting[3]})


def test_verdict_names_each_relation_once():
    def comparison(low, high):
        return {"difference": (low + high) / 2, "ci95": [low, high]}

    scores = {"novel_and_performant": {"novel": {"1x": 1.0}, "joint": {"1x": 0.5}}}
    comparisons = {
        "original": comparison(-0.001, 0.002),
        "average_16": comparison(-0.004, -0.001),
        "uniform_soup": comparison(-0.006, -0.002),
    }
    assert make_verdict({"groups": {"generated": scores}, "comparisons": comparisons}) == (
        "Generated networks are on average not distinguishable from the originals (+0.05 points, 95 % interval "
        "-0.10 to +0.20), but worse than averages of 16 originals (-0.25 points, 95 % interval -0.40 to -0.10) and "
        "the uniform soup of all originals (-0.40 points, 95 % interval -0.60 to -0.20); 50% of them are both novel "
        "and performant."
    )
