import pytest
import torch

from pdiff_hf import BaseModel, ConditionSpec, ParameterDataset, ParameterLayout
from pdiff_hf.models.autoencoder_identity import AutoencoderIdentity
from pdiff_hf.models.kinds import AutoencoderFunctionalConfig
from pdiff_hf.networks import mlp3
from pdiff_hf.tasks.evaluators import make_evaluator, make_gate_evaluator, open_task
from pdiff_hf.tasks.probes import make_probes
from pdiff_hf.training.functional_gate import measure_functions

TASK = {"task": {"kind": "image_classification", "dataset": "digits"}}
DIGITS = [str(digit) for digit in range(10)]


def save(folder, conditions, condition, num_classes):
    options = {"in_features": 64, "hidden": [4, 4], "num_classes": num_classes}
    torch.manual_seed(0)
    network = mlp3(**options)
    layout = ParameterLayout.from_model(network)
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **options).save_weights(network, folder / "base")
    vectors, columns = layout.flatten(network).repeat(2, 1), {"condition": [condition] * 2}
    return ParameterDataset.write(vectors, layout, folder / "ds", base, columns, TASK, conditions=conditions)


def test_networks_with_labels_of_their_own_are_not_judged_by_those_of_the_task(tmp_path):
    dataset = save(tmp_path, ConditionSpec.named("classes", DIGITS), ["1", "7"], 2)
    with pytest.raises(ValueError, match=r"expected networks of one task, found classes \(0, .*condition_labels"):
        make_evaluator(dataset, "val")


def test_the_gate_judges_a_network_by_the_labels_of_its_own_subset(tmp_path):
    spec = ConditionSpec.named("classes", DIGITS)
    dataset = save(tmp_path, spec, ["1", "7"], 2)
    dataset.append(dataset.vectors(rows=[0]), {"run": ["b"], "condition": [["0", "2", "4", "6", "8"]]})
    dataset = ParameterDataset(tmp_path / "ds")
    evaluator = make_gate_evaluator(dataset)
    assert [evaluator.populations[row] for row in evaluator.rows] == ["1+7", "1+7", "0+2+4+6+8"]
    digits, predicted = open_task(dataset).labels("val"), evaluator.predictions(dataset.vectors())
    own = [torch.isin(digits, torch.tensor(subset)) for subset in ([1, 7], [1, 7], [0, 2, 4, 6, 8])]
    expected = (predicted == torch.stack(own)).float().mean(1)
    torch.testing.assert_close(evaluator.score(dataset.vectors(), population=evaluator.rows), expected)
    with pytest.raises(ValueError, match="expected the task of every network"):
        evaluator.score(dataset.vectors())


@pytest.mark.parametrize(
    ("conditions", "condition"),
    [
        (ConditionSpec.named("metric", ["ece"]), {"ece": 0.5}),
        (ConditionSpec.named("classes", ["wide", "deep"]), ["deep"]),
    ],
)
def test_networks_of_one_task_are_judged_whatever_their_conditions(tmp_path, conditions, condition):
    dataset = save(tmp_path, conditions, condition, 10)
    scores = make_gate_evaluator(dataset).score(dataset.vectors())
    assert scores.shape == (2,) and scores[0] == scores[1]


def test_the_gate_of_functions_knows_the_subset_of_a_network(tmp_path):
    dataset = save(tmp_path, ConditionSpec.named("classes", DIGITS), ["1", "7"], 2)
    dataset.append(-dataset.vectors(rows=[0]), {"run": ["b"], "condition": [["0", "2", "4", "6", "8"]]})
    dataset = ParameterDataset(tmp_path / "ds")
    evaluator, vectors = make_gate_evaluator(dataset), dataset.vectors()
    autoencoder = AutoencoderIdentity(layout=dataset.layout.to_dict())
    autoencoder.fit_statistics(vectors)
    report = measure_functions(autoencoder.eval(), vectors, vectors, evaluator, evaluator.rows)
    expected = evaluator.score(vectors, population=evaluator.rows).mean().item()
    assert report["accuracy_original"] == pytest.approx(expected, abs=1e-6)
    assert report["accuracy_drop"] == 0


def test_a_loss_of_labels_takes_those_of_the_subset_of_every_row(tmp_path):
    dataset = save(tmp_path, ConditionSpec.named("classes", DIGITS), ["1", "7"], 2)
    probes = make_probes(dataset, AutoencoderFunctionalConfig(task_loss=1.0))
    assert probes.class_labels.tolist() == [[0, 1, 0, 0, 0, 0, 0, 1, 0, 0]] * 2
