import json
from functools import reduce
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import nn

from pdiff_hf.evaluation.autocorrelation import RunMemory
from pdiff_hf.evaluation.evaluate import evaluate_groups
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.evaluation.groups import build_groups
from pdiff_hf.evaluation.intervals import exact_interval
from pdiff_hf.evaluation.permutations import find_permutations
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


def run(setting, groups, **options):
    model, layout, _, _, val, test = setting
    evaluators = (ParameterEvaluator(model, layout, *images) for images in (val, test))
    return evaluate_groups(groups, *evaluators, **options)


def test_metrics_have_the_documented_form_and_are_json(setting):
    model, layout, vector, originals, _, _ = setting
    groups, seconds = build_groups(
        originals,
        vector + torch.zeros(5, 1),
        layout,
        originals,
        ParameterEvaluator(model, layout, *setting[4]).accuracy,
        draw_latents=lambda num, generator: vector + torch.randn(num, len(vector), generator=generator),
    )
    result = run(setting, groups, seconds={**seconds, "generated": 2.0}, permutations=find_permutations(model, layout))
    metrics = json.loads(json.dumps(result.metrics.to_dict(), allow_nan=False))
    assert metrics["schema"] == 2
    assert metrics["num_parameters"] == layout.num_parameters
    assert metrics["num_test"] == 400
    names = ["original", "reconstructed", "generated", "generated_uniform_soup", "generated_greedy_soup"]
    names += ["uniform_soup", "greedy_soup", "average_16", "noise_0.05", "noise_0.1", "gaussian", "pca_gaussian"]
    names += ["gaussian_latents", "swag", "interpolation", "slerp"]
    assert list(metrics["groups"]) == names
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for group in metrics["groups"].values():
        assert {"iou_mean", "iou_max_mean", "l2_nearest_mean", "l2_nearest_min"} <= set(group["similarity"])
        for metric in ("test_accuracy", "test_nll", "test_ece"):
            assert set(group[metric]) == {"mean", "std", "min", "max", "ci95"}
            low, high = group[metric]["ci95"] or [group[metric]["mean"]] * 2
            assert low <= group[metric]["mean"] <= high
        for key in (*group, *group["selected"], *group["similarity"], *group["novel_and_performant"], *group["cost"]):
            assert f"{key}`" in documented or key == "ci95", key
    assert set(metrics["comparisons"]) == set(metrics["selected_comparisons"]) == set(names) - {"generated"}
    assert set(metrics["soup_comparisons"]) == {"uniform_soup", "greedy_soup"}
    assert set(metrics["ensembles"]) == {"generated", "original", "swag", "best_single"}
    for key in (*metrics, *metrics["selected_comparisons"]["original"]):
        assert f"{key}`" in documented or f"{key}." in documented, key
    cost = metrics["groups"]["generated"]["cost"]
    gain = metrics["groups"]["generated"]["difference_to_original"]["difference"]
    assert cost == {"seconds": 2, "gain_per_second": pytest.approx(gain / 2)}
    assert metrics["groups"]["original"]["cost"] == {"seconds": None, "gain_per_second": None}


def test_matrix_of_similarities_has_blocks_of_groups(setting):
    originals = setting[3]
    result = run(setting, {"original": originals, "generated": originals[:3]})
    assert result.iou_sizes == {"original": 8, "generated": 3}
    assert result.iou.shape == (11, 11)
    assert torch.equal(result.iou[8:, :3].diag(), torch.ones(3)) and result.iou[0, 1] < 1


def test_selected_networks_are_compared_example_by_example(setting):
    _, _, vector, originals, _, test = setting
    result = run(setting, {"original": originals, "generated": vector[None]})
    chosen = result.groups["original"].selected
    evaluator = ParameterEvaluator(setting[0], setting[1], *test)
    right, right_original = (evaluator.predictions(v)[0] == test[1] for v in (vector[None], originals[[chosen]]))
    found = result.metrics.to_dict()["selected_comparisons"]["original"]
    counts = int((right & ~right_original).sum()), int((~right & right_original).sum())
    assert (found["only_generated"], found["only_other"]) == counts
    assert found["difference"] == pytest.approx((counts[0] - counts[1]) / 400)
    assert found["p_value"] == pytest.approx(stats.binomtest(counts[0], sum(counts)).pvalue)


def test_selection_is_on_val_and_reported_on_test(setting):
    model, layout, _, originals, val, test = setting
    group = run(setting, {"original": originals}).metrics.to_dict()["groups"]["original"]
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


def test_spread_and_matching_are_those_of_the_groups(setting):
    originals = setting[3]
    centered = originals - originals.mean(0)
    groups = {"original": originals, "generated": originals.mean(0) + 0.25 * centered}
    metrics = run(setting, groups).metrics.to_dict()["groups"]
    assert metrics["generated"]["spread"] == pytest.approx(0.25, rel=1e-4)
    assert metrics["original"]["spread"] == pytest.approx(1)
    assert "l2_matched_mean" not in metrics["original"]["similarity"]


def test_novel_counts_multiples_of_the_yardstick(setting):
    originals = setting[3]
    yardstick = torch.cdist(originals, originals).fill_diagonal_(float("inf")).min(1).values.mean()
    direction = torch.zeros(originals.shape[1])
    direction[-4:] = 0.5  # the same for every bias: logits move, predictions stay
    generated = originals[:1] + direction * yardstick * torch.tensor([[0.9], [1.1], [2.1], [4.1]])
    scores = run(setting, {"original": originals, "generated": generated}).metrics.to_dict()["groups"]["generated"]
    assert scores["novel_and_performant"]["novel"] == {"1x": 0.75, "2x": 0.5, "4x": 0.25}


def test_on_a_trajectory_novel_is_measured_by_independent_originals_and_copies_by_neighbours(setting):
    vector = setting[2]
    path = vector + torch.arange(12.0)[:, None] * torch.nn.functional.one_hot(torch.tensor(0), len(vector))
    memory = RunMemory(torch.zeros(12).long(), torch.arange(12), torch.tensor([4.0], dtype=torch.float64))
    aside = torch.nn.functional.one_hot(torch.tensor(1), len(vector))
    generated = path[5] + torch.tensor([[0.3], [0.4], [3.9], [4.1]]) * aside
    metrics = run(setting, {"original": path, "generated": generated}, memory=memory).metrics
    assert metrics.original.similarity.l2_nearest_mean == pytest.approx(1, rel=1e-4)
    assert metrics.yardstick == metrics.original.similarity.l2_independent_mean == pytest.approx(4, rel=1e-4)
    assert metrics.generated.novel_and_performant.novel["1x"] == 0.25
    assert metrics.generated.novel_and_performant.copied == 0.25
    with pytest.raises(ValueError, match="expected the memory of 8 originals, found that of 12 rows"):
        run(setting, {"original": setting[3]}, memory=memory)


def test_one_original_leaves_similarity_among_originals_open(setting):
    metrics = run(setting, {"original": setting[3][:1], "generated": setting[3][1:]}).metrics.to_dict()
    similarity = metrics["groups"]["original"]["similarity"]
    assert set(similarity.pop("ci95").values()) | set(similarity.values()) == {None}
    assert metrics["groups"]["generated"]["novel_and_performant"]["copied"] == 0
    json.dumps(metrics, allow_nan=False)


def test_intervals_over_originals_count_the_independent_ones(setting):
    _, layout, vector, originals, _, _ = setting
    noise = 0.1 * torch.randn(6, len(vector), generator=torch.Generator().manual_seed(0))
    groups, _ = build_groups(
        originals, vector + noise[:5], layout, originals.mean(0) + 0.9 * (originals[:6] - originals.mean(0))
    )
    memory = RunMemory(torch.zeros(8).long(), torch.arange(8), torch.tensor([3.0]))
    whole, counted = (run(setting, groups, **options).metrics.groups for options in ({}, {"memory": memory}))
    for name, expected in {"original": 8 / 3, "reconstructed": 8 / 3, "generated": 5}.items():
        assert counted[name].n_effective == pytest.approx(expected) and whole[name].n_effective == counted[name].n
        is_wider = expected != 5
        for path in ("test_accuracy.ci95", "test_nll.ci95", "test_ece.ci95", "similarity.ci95.l2_nearest_mean",
                     "similarity.ci95.iou_max_mean", "novel_and_performant.ci95.performant"):  # fmt: skip
            widths = [reduce(getattr, path.split("."), of[name]) for of in (whole, counted)]
            (low, high), (lowest, highest) = widths
            assert (highest - lowest > high - low) == is_wider, (name, path)
    assert 8 / 3 < counted["noise_0.1"].n_effective < 5
    # Everything is compared with the originals.
    before, after = (of["generated"].difference_to_original.ci95 for of in (whole, counted))
    assert after[0] < before[0] < before[1] < after[1]
    tuned = run(setting, {**groups, "fine_tuned": originals[:6]}, n_effective={"fine_tuned": 2.5}).metrics
    assert tuned.groups["fine_tuned"].n_effective == 2.5


def test_groups_need_originals(setting):
    with pytest.raises(ValueError, match=r"expected a group 'original'.*found \['generated'\]"):
        run(setting, {"generated": setting[3]})
