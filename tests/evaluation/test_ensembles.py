import json
import math

import pytest
import torch
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from pdiff_hf.evaluation.ensembles import evaluate_ensembles
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.layout import ParameterLayout

CLASSES, FEATURES = 4, 12


@pytest.fixture(scope="module")
def setting():
    """A linear classifier that knows the planted classes, as an evaluator on 300 images and its parameter vector."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(CLASSES, FEATURES, generator=generator)
    labels = torch.randint(CLASSES, (300,), generator=generator)
    images = (centers[labels] + 1.3 * torch.randn(300, FEATURES, generator=generator)).reshape(300, 3, 2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, CLASSES))
    with torch.no_grad():
        model[1].weight.copy_(centers)
        model[1].bias.copy_(-centers.square().sum(1) / 2)
    layout = ParameterLayout.from_model(model)
    return ParameterEvaluator(model, layout, images, labels, batch_size=128), layout.flatten(model), images


def noised(vector, n, sigma=0.5, seed=1):
    return vector + sigma * torch.randn(n, len(vector), generator=torch.Generator().manual_seed(seed))


def direct(setting, vectors):
    """Metrics of the probability average of networks, by full forwards in float64."""
    evaluator, _, images = setting
    features, labels = images.flatten(1).double(), evaluator.labels
    weights = vectors[:, : CLASSES * FEATURES].reshape(-1, CLASSES, FEATURES).double()
    logits = torch.einsum("nf,mcf->mnc", features, weights) + vectors[:, None, CLASSES * FEATURES :].double()
    probabilities = logits.softmax(-1).mean(0)
    return {
        "accuracy": (probabilities.argmax(1) == labels).double().mean().item(),
        "nll": -probabilities[torch.arange(len(labels)), labels].log().mean().item(),
        "ece": multiclass_calibration_error(probabilities, labels, CLASSES, n_bins=15).item(),
    }


def means(entry):
    return {metric: values["mean"] for metric, values in entry.items()}


def test_ensemble_of_a_whole_group_equals_the_average_of_full_forwards(setting):
    vectors = noised(setting[1], 5)
    results = evaluate_ensembles({"group": vectors}, setting[0], sizes=(5,))
    # float32 logits against float64.
    assert means(results["group"]["5"]) == pytest.approx(direct(setting, vectors), abs=1e-5)


def test_ensembles_of_a_repeat_are_nested_and_disjoint_from_other_repeats(setting):
    evaluator, vector, _ = setting
    vectors = noised(vector, 6)
    results = evaluate_ensembles({"group": vectors}, evaluator, sizes=(1, 3), repeats=2)["group"]
    singles = [direct(setting, vectors[i : i + 1])["nll"] for i in range(6)]
    # Of all ways to draw two disjoint triples and the first of each, one has the reported numbers.
    found = []
    for code in range(2**6):
        triple = [i for i in range(6) if code >> i & 1]
        rest = [i for i in range(6) if i not in triple]
        if len(triple) == 3:
            nll = (direct(setting, vectors[triple])["nll"] + direct(setting, vectors[rest])["nll"]) / 2
            pairs = [(singles[i] + singles[j]) / 2 for i in triple for j in rest]
            is_single = any(abs(pair - results["1"]["nll"]["mean"]) < 1e-5 for pair in pairs)
            found.append(abs(nll - results["3"]["nll"]["mean"]) < 1e-5 and is_single)
    assert sum(found) == 2, "once in either order"


def test_best_single_equals_the_evaluator_on_one_network(setting):
    evaluator, vector, _ = setting
    results = evaluate_ensembles({"group": noised(vector, 3)}, evaluator, best_single=vector)
    output = evaluator.predict(vector[None])
    assert list(results) == ["group", "best_single"]
    assert list(results["best_single"]) == ["1"]
    expected = {metric: getattr(output, metric).item() for metric in ("accuracy", "nll", "ece")}
    assert means(results["best_single"]["1"]) == pytest.approx(expected, abs=1e-6)


def test_identical_networks_gain_nothing(setting):
    evaluator, vector, _ = setting
    results = evaluate_ensembles({"group": noised(vector, 1).expand(20, -1)}, evaluator)["group"]
    assert list(results) == ["1", "2", "5", "10"]
    for size in ("2", "5", "10"):
        for metric, values in results[size].items():
            # Averages are rounded to float32.
            assert values["mean"] == pytest.approx(results["1"][metric]["mean"], abs=1e-5)
            assert values["ci95"] == pytest.approx(results["1"][metric]["ci95"], abs=1e-5)


def test_sizes_above_the_group_are_left_out(setting):
    evaluator, vector, _ = setting
    results = evaluate_ensembles({"few": noised(vector, 4), "one": vector[None]}, evaluator, sizes=(10, 2, 1))
    assert list(results["few"]) == ["1", "2"]
    assert list(results["one"]) == ["1"]
    assert evaluate_ensembles({"few": noised(vector, 4)}, evaluator, sizes=(5,)) == {"few": {}}


def test_results_depend_on_the_seed_and_on_no_other_group(setting):
    evaluator, vector, _ = setting
    vectors = noised(vector, 30)
    first = evaluate_ensembles({"group": vectors}, evaluator, sizes=(2,))
    second = evaluate_ensembles({"other": vectors[:7], "group": vectors}, evaluator, sizes=(2,))
    assert second["group"] == first["group"]
    assert evaluate_ensembles({"group": vectors}, evaluator, sizes=(2,), seed=1) != first


def test_gain_of_averaging_independent_networks_is_larger_than_its_interval(setting):
    evaluator, vector, _ = setting
    group = evaluate_ensembles({"group": noised(vector, 60, sigma=1.0)}, evaluator)["group"]
    losses = [group[size]["nll"]["mean"] for size in ("1", "2", "5", "10")]
    assert losses == sorted(losses, reverse=True)
    assert group["10"]["nll"]["ci95"][1] < group["1"]["nll"]["ci95"][0]
    assert group["10"]["accuracy"]["ci95"][0] > group["1"]["accuracy"]["ci95"][1]
    for entry in group.values():
        for metric in entry.values():
            assert metric["ci95"][0] <= metric["mean"] <= metric["ci95"][1]


def test_interval_of_one_network_is_that_of_its_images(setting):
    evaluator, vector, _ = setting
    accuracy = evaluate_ensembles({"one": vector[None]}, evaluator)["one"]["1"]["accuracy"]
    mean = accuracy["mean"]
    half = 1.96 * math.sqrt(mean * (1 - mean) / 300)
    # Three standard errors of the standard deviation of 500 resamples.
    assert accuracy["ci95"] == pytest.approx([mean - half, min(1, mean + half)], abs=3 * half / math.sqrt(2 * 500))


def test_interval_covers_the_draw_of_networks():
    """Networks that answer one class each: the images alone would give a tenth of the spread between repeats."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    layout = ParameterLayout.from_model(model)
    labels = (torch.arange(2000) < 1200).long()
    evaluator = ParameterEvaluator(model, layout, torch.zeros(2000, 3, 2, 2), labels)
    vectors = torch.zeros(40, layout.num_parameters)
    vectors[:20, -1] = vectors[20:, -2] = 1.0
    results = evaluate_ensembles({"group": vectors}, evaluator, sizes=(1,), repeats=40)
    low, high = results["group"]["1"]["accuracy"]["ci95"]
    # Every network is drawn once: half of them have 0.6 right, half 0.4.
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / math.sqrt(40), rel=0.15)


def test_interval_of_a_calibrated_network_has_an_ece_of_nearly_zero():
    """The measured error on 300 images is noise alone, and an interval around it would say otherwise."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, CLASSES))
    layout = ParameterLayout.from_model(model)
    vector = 0.5 * torch.randn(layout.num_parameters, generator=generator)
    layout.load_into(model, vector)
    intervals = []
    for _ in range(10):
        images = torch.randn(300, 3, 2, 2, generator=generator)
        labels = torch.multinomial(model(images).softmax(1).detach(), 1, generator=generator)[:, 0]
        evaluator = ParameterEvaluator(model, layout, images, labels)
        ece = evaluate_ensembles({"one": vector[None]}, evaluator)["one"]["1"]["ece"]
        assert ece["ci95"][0] < ece["mean"] < ece["ci95"][1]
        intervals.append(ece["ci95"])
    assert sum(low < 0.01 for low, _ in intervals) >= 9


def test_nan_counts_as_wrong_and_stays_json(setting):
    evaluator, vector, _ = setting
    results = evaluate_ensembles({"group": torch.stack([vector, vector * float("nan")])}, evaluator, sizes=(2,))
    assert json.loads(json.dumps(results, allow_nan=False))["group"]["2"] == {
        "accuracy": {"mean": 0.0, "ci95": [0.0, 0.0]},
        "nll": {"mean": None, "ci95": None},
        "ece": {"mean": None, "ci95": None},
    }


def test_confident_mistakes_have_finite_losses(setting):
    evaluator, vector, _ = setting
    nll = evaluate_ensembles({"group": -1000 * noised(vector, 2)}, evaluator, sizes=(2,))["group"]["2"]["nll"]
    assert nll["mean"] > 100
    assert nll["ci95"][0] > 100


def test_sizes_must_be_positive(setting):
    with pytest.raises(ValueError, match="expected positive sizes and repeats"):
        evaluate_ensembles({"group": setting[1][None]}, setting[0], sizes=(0, 1))
