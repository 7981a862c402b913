import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from torch import nn

from pdiff_hf import BaseModel, ParameterLayout
from pdiff_hf.data.columns import features
from pdiff_hf.data.integrity import find_shards
from pdiff_hf.data.order import RowOrder
from pdiff_hf.data.shards import write_shard
from pdiff_hf.data.vectors import split_rows
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.evaluation.inspection.cost import activation_bytes, autoencoder_costs, inspected_autoencoders
from pdiff_hf.evaluation.inspection.inspect_dataset import inspect_dataset
from pdiff_hf.evaluation.inspection.tables import make_tables
from pdiff_hf.evaluation.tensor_kinds import column_kinds
from pdiff_hf.layout import TensorSpec
from pdiff_hf.models.autoencoder_pca import AutoencoderPCA
from pdiff_hf.models.few_rows import fit_to_rows
from pdiff_hf.models.kinds import AutoencoderPCAConfig, UNet1DConditionConfig
from pdiff_hf.networks import mlp3
from pdiff_hf.runs.stages import check_training
from pdiff_hf.training.gate import measure_reconstruction
from small_datasets import unlist

NETWORK = {"in_features": 64, "hidden": (8, 8), "num_classes": 10}
LAYOUT = ParameterLayout.from_model(mlp3(**NETWORK))
D = LAYOUT.num_parameters


@pytest.fixture(scope="module")
def evaluator(digits):
    return ParameterEvaluator(mlp3(**NETWORK), LAYOUT, digits[0][1000:], digits[1][1000:])


def train(digits, seed, num_checkpoints):
    """Checkpoints of one run after 150 steps on its own."""
    torch.manual_seed(seed)
    model = mlp3(**NETWORK)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    rows = []
    for step in range(150 + num_checkpoints):
        batch = torch.randint(1000, (200,))
        nn.functional.cross_entropy(model(digits[0][batch]), digits[1][batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= 150:
            rows.append(LAYOUT.flatten(model))
    return torch.stack(rows)


@pytest.fixture(scope="module")
def run_a(digits):
    return train(digits, 0, 30)


@pytest.fixture(scope="module")
def run_b(digits):
    return train(digits, 1, 30)


def around(center, num_rows=200, seed=0):
    """Independent rows of twenty strong and all weak directions about one network."""
    generator = torch.Generator().manual_seed(seed)
    strong = torch.randn(num_rows, 20, generator=generator) @ torch.randn(20, D, generator=generator)
    return center + 0.001 * strong + 0.0005 * torch.randn(num_rows, D, generator=generator)


def inspect(folder, vectors, evaluator=None, layout=LAYOUT, **columns):
    columns.setdefault("step", [*range(len(vectors))])
    save_parameter_dataset(vectors, layout, folder / "dataset", None, columns)
    report = inspect_dataset(folder / "dataset", evaluator, device="cpu")
    json.dumps(report, allow_nan=False)
    return report


def printed(report):
    file = io.StringIO()
    Console(file=file, width=1000).print(make_tables(report))
    return file.getvalue()


def advice(report, word):
    return [(entry["severity"], entry["finding"]) for entry in report["advice"] if word in entry["finding"]]


def names(count, *runs):
    return [run for run in runs for _ in range(count)]


def replace_values(folder, change):
    """Write what the recorder refuses."""
    [file] = find_shards(folder / "dataset")
    table = pq.read_table(file)
    values = table.column("parameters").combine_chunks().flatten().to_numpy().reshape(len(table), -1).copy()
    change(values)
    field = features(LAYOUT, {}).arrow_schema.field("parameters")
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1]).cast(field.type)
    write_shard(table.set_column(0, field, column), file)
    unlist(folder / "dataset")


# Healthy


def test_nothing_stands_in_the_way_of_independent_rows_of_one_basin(tmp_path, run_a, evaluator):
    report = inspect(tmp_path, around(run_a[-1]), evaluator)
    assert not [entry for entry in report["advice"] if entry["severity"] != "hint"]
    assert "Nothing stands in the way." in printed(report)
    assert report["geometry"]["effective_rows"] > 150
    assert report["functional"]["within_runs"]["mean"] < 0.01
    assert report["functional"]["between_runs"] is None


def test_figures_of_many_rows_are_of_every_nth_of_each_run(tmp_path, monkeypatch):
    monkeypatch.setattr("pdiff_hf.evaluation.inspection.inspect_dataset.MAX_ROWS", 20)
    vectors = torch.randn(60, D)
    vectors[50] = vectors[0]
    report = inspect(tmp_path, vectors, run=["a"] * 45 + ["b"] * 15, step=[*range(45), *range(15)])
    assert (report["num_rows"], report["num_examined"], report["geometry"]["rank"]) == (60, 20, 19)
    assert report["copies"]["duplicate_rows"] == [[0, 50]]
    assert {name: run["num_finite_rows"] for name, run in report["runs"].items()} == {"a": 45, "b": 15}
    assert "figures of 20 of them" in printed(report)


# Basins


def test_checkpoints_of_one_run_lie_in_one_basin(tmp_path, run_a, evaluator):
    report = inspect(tmp_path, run_a, evaluator)
    assert report["functional"]["within_runs"]["mean"] < 0.02
    assert not advice(report, "basin")
    assert "one basin" in printed(report)


def test_independent_runs_lie_in_many_basins_and_will_not_reconstruct(tmp_path, run_a, run_b, evaluator):
    report = inspect(tmp_path, torch.cat([run_a, run_b]), evaluator, run=names(30, "a", "b"))
    assert report["functional"]["between_runs"]["mean"] > 0.1 > 0.02 > report["functional"]["within_runs"]["mean"]
    [(severity, finding)] = advice(report, "different basins")
    assert severity == "stop"
    assert "will not reconstruct" in finding and "permutation symmetry" in finding
    [entry] = [entry for entry in report["advice"] if entry["finding"] == finding]
    assert "Record along one run" in entry["action"] and "collect." not in entry["action"]
    assert report["geometry"]["reconstruction"]["left_out_run"] < 0.2
    text = printed(report)
    assert "many basins" in text and "Do not train on this dataset as it is." in text


def test_independent_networks_under_one_run_name_are_noticed(tmp_path, run_a, run_b, evaluator):
    report = inspect(tmp_path, torch.cat([run_a, run_b]), evaluator)
    assert [severity for severity, _ in advice(report, "different basins")] == ["stop"]


@pytest.mark.parametrize("columns", [{"run": names(1, *"abcdef")}, {}])
def test_without_images_the_distances_tell_independent_networks(tmp_path, columns):
    vectors = torch.stack([LAYOUT.flatten(mlp3(**NETWORK)) for _ in range(6)])
    report = inspect(tmp_path, vectors, **columns)
    assert report["functional"] is None
    assert [severity for severity, _ in advice(report, "independently trained")] == ["warning"]
    assert "not measured" in printed(report)


def test_without_images_one_run_is_not_taken_for_independent_networks(tmp_path, run_a):
    assert not advice(inspect(tmp_path, run_a), "independently")


def test_barrier_is_the_largest_rise_above_the_straight_line(tmp_path, run_a, run_b, evaluator):
    pair = torch.stack([run_a[-1], run_b[-1]])
    between = inspect(tmp_path, pair, evaluator, run=["a", "b"])["functional"]["between_runs"]
    errors = 1 - evaluator.accuracy(torch.stack([torch.lerp(*pair, alpha / 10) for alpha in range(11)]))
    expected = max(errors[i] - ((10 - i) * errors[0] + i * errors[10]) / 10 for i in range(11))
    assert between["num_pairs"] == 1
    # The evaluator takes the images in another order.
    assert between["mean"] == between["max"] == pytest.approx(expected.item(), abs=1e-6)
    assert sorted(between["errors"]) == pytest.approx(sorted(errors.tolist()), abs=1e-6)


def test_one_run_of_few_independent_checkpoints_warns(tmp_path, run_a):
    report = inspect(tmp_path, run_a)
    assert report["geometry"]["effective_rows"] < 6
    assert [severity for severity, _ in advice(report, "30 checkpoints count like")] == ["warning"]


# Values


def test_non_finite_rows_and_tensors_are_reported_and_left_out(tmp_path, run_a, evaluator):
    save_parameter_dataset(run_a, LAYOUT, tmp_path / "dataset")

    def damage(values):
        values[3:6, LAYOUT.tensors[0].offset] = float("nan")
        values[9, LAYOUT.tensors[2].offset + 1] = 1e37
        values[21] = values[20]

    replace_values(tmp_path, damage)
    report = inspect_dataset(tmp_path / "dataset", evaluator, device="cpu")
    first, third = LAYOUT.names[0], LAYOUT.names[2]
    assert report["non_finite"] == {"rows": [3, 4, 5, 9], "tensors": {first: 3, third: 1}}
    assert report["runs"]["run-0"]["num_finite_rows"] == 26
    [entry] = [entry for entry in report["advice"] if "NaN" in entry["finding"]]
    assert entry["severity"] == "stop" and "3-5, 9" in entry["action"] and first in entry["finding"]
    assert report["geometry"]["rank"] == 24
    assert report["copies"]["duplicate_rows"] == report["runs"]["run-0"]["duplicate_rows"] == [[20, 21]]
    assert json.dumps(report, allow_nan=False) and "4 checkpoints not finite" in printed(report)


def test_a_dataset_without_finite_rows_gets_advice_too(tmp_path, run_a):
    save_parameter_dataset(run_a[:3], LAYOUT, tmp_path / "dataset")
    replace_values(tmp_path, lambda values: values.fill(float("nan")))
    report = inspect_dataset(tmp_path / "dataset", device="cpu")
    assert report["geometry"] is report["autoencoders"] is None
    assert "0 finite checkpoints" in printed(report)


def test_copied_rows_constant_and_tied_tensors_are_named(tmp_path, run_a):
    vectors = around(run_a[-1], 30)
    constant, dead = LAYOUT.tensors[1], LAYOUT.tensors[0].offset + 5
    vectors[:, constant.offset : constant.offset + constant.numel] = 0.5
    vectors[:, dead] = 0.25
    tied = LAYOUT.tensors[3]
    assert tied.numel == constant.numel
    layout = ParameterLayout((*LAYOUT.tensors, TensorSpec("tied.bias", tied.shape, D)))
    vectors = torch.cat([vectors, vectors[:, tied.offset : tied.offset + tied.numel]], 1)
    vectors[7] = vectors[2]
    vectors[20] = vectors[2]
    report = inspect(tmp_path, vectors, layout=layout, run=names(15, "a", "b"))
    assert report["copies"] == {
        "constant_tensors": [constant.name],
        "num_constant_parameters": constant.numel + 1,
        "duplicate_rows": [[2, 7, 20]],
        "duplicate_tensors": [[tied.name, "tied.bias"]],
    }
    assert report["runs"]["a"]["duplicate_rows"] == [[2, 7]] and report["runs"]["b"]["duplicate_rows"] == []
    assert report["runs"]["b"]["constant_tensors"] == [constant.name]
    for word in ("exact copies", "never change", "equal in every checkpoint"):
        assert [severity for severity, _ in advice(report, word)] == ["warning"]
    assert report["geometry"]["distances"]["nearest"]["min"] == 0


def test_a_tensor_that_is_constant_in_one_run_only_is_named(tmp_path, run_a):
    vectors, bias = around(run_a[-1], 30), LAYOUT.tensors[1]
    vectors[15:, bias.offset : bias.offset + bias.numel] = 0.5
    report = inspect(tmp_path, vectors, run=names(15, "a", "b"))
    assert report["copies"]["constant_tensors"] == report["runs"]["a"]["constant_tensors"] == []
    assert report["runs"]["b"]["constant_tensors"] == [bias.name]
    assert report["runs"]["b"]["num_constant_parameters"] == bias.numel
    assert advice(report, "In 1 of 2 runs")


def test_rows_are_followed_in_the_order_of_their_steps(tmp_path, run_a):
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    straight = inspect(tmp_path / "straight", run_a, step=list(range(30)))
    shuffled = inspect(tmp_path / "shuffled", run_a[order], step=order.tolist())
    key = "autocorrelation_time"
    assert shuffled["runs"]["run-0"][key] == pytest.approx(straight["runs"]["run-0"][key], rel=1e-6)


# Autoencoders


def test_few_checkpoints_are_given_the_latent_that_they_train(tmp_path, run_a):
    report = inspect(tmp_path, run_a)
    [entry] = [
        entry for entry in report["advice"] if "30 checkpoints: 23 latent values instead of 32" in entry["finding"]
    ]
    assert entry["severity"] == "hint" and "or train all the same: pdiff train" in entry["action"]
    fitted, denoiser, _ = fit_to_rows(AutoencoderPCAConfig(), UNet1DConditionConfig(), 30)
    check_training(LAYOUT, RowOrder.of_runs(30), fitted, denoiser)
    with pytest.raises(ValueError, match="needs at least 25 checkpoints to train on, found 24"):
        check_training(LAYOUT, RowOrder.of_runs(30), AutoencoderPCAConfig(latent_channels=24), denoiser)


def test_copies_are_too_few_directions_for_the_latent(tmp_path, run_a):
    report = inspect(tmp_path, run_a[:10].repeat(4, 1))
    [entry] = [entry for entry in report["advice"] if "is too large" in entry["finding"]]
    assert entry["severity"] == "stop" and "autoencoder.latent_channels=" in entry["action"]


def test_what_the_gate_will_find_is_foretold(tmp_path, run_a):
    vectors = around(run_a[-1])
    found = inspect(tmp_path, vectors)
    train_rows, heldout_rows = split_rows(len(vectors), 10)
    autoencoder = AutoencoderPCA(layout=LAYOUT.to_dict(), normalization="per_parameter")
    autoencoder.fit_statistics(vectors[train_rows])
    parts = vectors[train_rows], vectors[heldout_rows]
    measured = measure_reconstruction(autoencoder, *parts, columns=column_kinds(LAYOUT))
    # Its directions are those of rows that are normalised by the training rows' statistics.
    for key in ("explained_variance", "explained_by_kind"):
        assert found["gate"][key] == pytest.approx(measured[key], abs=0.01)
    assert found["gate"]["explained_variance"] == pytest.approx(found["geometry"]["reconstruction"]["heldout"])
    assert found["gate"]["will_pass"] == (min(measured["explained_by_kind"].values()) >= 0.95)


def test_noise_in_all_directions_warns_of_the_gate(tmp_path):
    report = inspect(tmp_path, torch.randn(200, D, generator=torch.Generator().manual_seed(0)))
    assert [severity for severity, _ in advice(report, "the gate asks for")] == ["warning"]


def test_few_strong_directions_hint_at_a_smaller_latent(tmp_path, run_a):
    generator = torch.Generator().manual_seed(0)
    strong = torch.randn(200, 5, generator=generator) @ torch.randn(5, D, generator=generator)
    report = inspect(tmp_path, run_a[-1] + 0.01 * strong + 1e-5 * torch.randn(200, D, generator=generator))
    assert report["geometry"]["num_components_99"] == 5
    [entry] = [entry for entry in report["advice"] if "default latent has 32" in entry["finding"]]
    # 16 values are the power of two next to twice 5.
    assert entry["severity"] == "hint" and "autoencoder.latent_channels=16 " in entry["action"]


@pytest.mark.parametrize("name", ["fast", "paper"])
def test_parameter_counts_and_weights_are_those_of_the_real_autoencoders(tmp_path, run_a, name):
    found = inspect(tmp_path, run_a)["autoencoders"][name]
    model = inspected_autoencoders()[name].build(LAYOUT.to_dict())
    assert found["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["bytes"]["weights"] == sum(tensor.nbytes for tensor in model.state_dict().values())
    # AdamW keeps two moments.
    assert found["bytes"]["optimizer"] == 2 * found["bytes"]["gradients"] == 8 * found["num_parameters"]
    assert found["bytes"]["total"] == sum(size for key, size in found["bytes"].items() if key != "total")
    assert found["fits"] and found["seconds"] > 0


@pytest.mark.parametrize(("num_parameters", "megabytes"), [(30_016, 3_756), (100_288, 13_352), (300_288, 44_882)])
def test_memory_of_the_papers_autoencoder_is_near_what_the_paper_measured(num_parameters, megabytes):
    layout = ParameterLayout((TensorSpec("weight", (num_parameters,), 0),)).to_dict()
    with torch.device("meta"):
        model = inspected_autoencoders()["paper"].build(layout)
    found = activation_bytes(model, 50) + 16 * sum(parameter.numel() for parameter in model.parameters())
    assert found / 2**20 == pytest.approx(megabytes, rel=0.15)


def test_an_autoencoder_that_does_not_fit_is_not_timed():
    layout = ParameterLayout((TensorSpec("weight", (10**10,), 0),))
    costs = autoencoder_costs(torch.zeros(1, 1).expand(2, 10**10), layout, torch.device("cpu"), 1.0)
    assert not costs["fast"]["fits"] and costs["fast"]["seconds"] is None
    assert costs["pca"]["num_parameters"] == 33 * 10**10 + 32


# Edges


def test_the_same_seed_gives_the_same_figures(tmp_path, run_a, evaluator):
    first = inspect(tmp_path, run_a, evaluator)
    again = inspect_dataset(tmp_path / "dataset", evaluator, device="cpu")
    for key in ("geometry", "functional", "copies"):
        assert first[key] == again[key]


def test_averages_of_noisy_networks_gain_and_say_so(tmp_path, run_a, evaluator):
    noise = torch.randn(60, D, generator=torch.Generator().manual_seed(0))
    report = inspect(tmp_path, run_a[-1] + 0.15 * noise, evaluator)
    assert report["functional"]["averaging"]["uniform_soup"]["ci95"][0] > 0
    assert [severity for severity, _ in advice(report, "Averaging alone gains")] == ["hint"]


def test_equal_checkpoints_are_said_to_be_equal(tmp_path, run_a, evaluator):
    report = inspect(tmp_path, run_a[:1].repeat(8, 1), evaluator)
    assert advice(report, "All checkpoints are equal")
    assert report["geometry"]["effective_rows"] == 1


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a parameter dataset"):
        inspect_dataset(tmp_path / "nothing")


def test_the_base_model_is_named(tmp_path, run_a):
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK)
    save_parameter_dataset(run_a, LAYOUT, tmp_path / "dataset", base)
    assert "pdiff_hf.tasks.networks:mlp3" in printed(inspect_dataset(tmp_path / "dataset", device="cpu"))
