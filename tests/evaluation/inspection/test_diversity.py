import io

import pytest
import torch
from rich.console import Console
from torch import nn

from pdiff_hf import BaseModel, ParameterLayout
from pdiff_hf.data.order import RowOrder
from pdiff_hf.data.vectors import split_rows
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.evaluation.inspection.diversity import functional_diversity
from pdiff_hf.evaluation.inspection.inspect_dataset import inspect_dataset
from pdiff_hf.evaluation.inspection.tables import make_tables
from pdiff_hf.models.kinds import AutoencoderFunctionalConfig, UNet1DConditionConfig
from pdiff_hf.networks import mlp3
from pdiff_hf.runs.stages import check_training

NETWORK = {"in_features": 64, "hidden": (8, 8), "num_classes": 10}
LAYOUT = ParameterLayout.from_model(mlp3(**NETWORK))
BASE = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK)
NUM = 40


@pytest.fixture(scope="module")
def zoo(digits):
    """Independent networks, trained as one batch."""
    torch.manual_seed(0)
    networks = [mlp3(**NETWORK) for _ in range(NUM)]
    tensors = {name: nn.Parameter(value) for name, value in torch.func.stack_module_state(networks)[0].items()}
    optimizer = torch.optim.Adam(tensors.values(), lr=0.02)
    generator = torch.Generator().manual_seed(0)
    compute = torch.func.vmap(lambda own, images: torch.func.functional_call(networks[0], own, images))
    for _ in range(120):
        batch = torch.randint(1000, (NUM, 100), generator=generator)
        logits = compute(tensors, digits[0][batch])
        (nn.functional.cross_entropy(logits.flatten(0, 1), digits[1][batch].flatten()) * NUM).backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([tensors[spec.name].detach().reshape(NUM, -1) for spec in LAYOUT.tensors], 1)


@pytest.fixture(scope="module")
def evaluator(digits):
    return ParameterEvaluator(mlp3(**NETWORK), LAYOUT, digits[0][1000:1400], digits[1][1000:1400])


def diversity(vectors, evaluator, runs=()):
    return functional_diversity(vectors, runs, evaluator, torch.Generator().manual_seed(0))


def permuted(vectors, seed=0):
    """The same networks, the hidden units of each in an order of its own."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for row in vectors:
        state = LAYOUT.unflatten(row)
        order = torch.randperm(8, generator=generator)
        for name in ("1.weight", "1.bias"):
            state[name] = state[name][order]
        state["3.weight"] = state["3.weight"][:, order]
        rows.append(torch.cat([state[spec.name].flatten() for spec in LAYOUT.tensors]))
    return torch.stack(rows)


def inspect(folder, vectors, evaluator=None, base=BASE, task="digits"):
    columns = {"run": [f"run-{number}" for number in range(len(vectors))]}
    metadata = {"collect": {"kind": "runs"}, **({"task": {"dataset": task}} if task else {})}
    save_parameter_dataset(vectors, LAYOUT, folder / "dataset", base, columns, metadata)
    return inspect_dataset(folder / "dataset", evaluator, device="cpu")


def printed(report):
    file = io.StringIO()
    Console(file=file, width=1000).print(make_tables(report))
    return file.getvalue()


# Figures


def test_disagreement_is_the_mean_share_of_examples_on_which_two_networks_differ(zoo, evaluator):
    found = diversity(zoo, evaluator)
    answers = evaluator.predictions(zoo)
    pairs = [(answers[a] != answers[b]).float().mean() for a in range(NUM) for b in range(a)]
    assert found["disagreement"] == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-6)
    assert found["agreement"] == pytest.approx(1 - found["disagreement"])
    assert (found["kind"], found["steps"], found["num_images"]) == ("diverse", None, 400)


def test_held_out_functions_are_explained_by_their_projection_on_components_of_the_others(zoo, evaluator):
    found = diversity(zoo, evaluator)
    logits = torch.cat([part for _, part in evaluator.logits(zoo)])
    functions = (logits - logits.mean(-1, keepdim=True)).flatten(1).double()
    train, heldout = (functions[rows] for rows in split_rows(NUM, 10))
    rows, offset = train - train.mean(0), heldout - train.mean(0)
    components = torch.linalg.svd(rows, full_matrices=False).Vh
    assert (found["num_train"], found["num_heldout"]) == (36, 4)
    for number, share in found["heldout"].items():
        projected = offset @ components[: int(number)].T
        assert share == pytest.approx((projected.square().sum() / offset.square().sum()).item(), rel=1e-4)
    values = torch.linalg.svdvals(functions - functions.mean(0)).square()
    for percent in (90, 99):
        least = int((values.cumsum(0) / values.sum() < percent / 100).sum()) + 1
        assert found[f"num_components_{percent}"] == least


def test_functions_do_not_depend_on_the_order_of_hidden_units(zoo, evaluator):
    before, after = diversity(zoo, evaluator), diversity(permuted(zoo), evaluator)
    assert after["heldout"] == pytest.approx(before["heldout"], rel=1e-3)
    assert after["disagreement"] == pytest.approx(before["disagreement"], abs=1e-3)


def test_of_functions_in_few_directions_few_latents_are_taken(zoo, evaluator):
    """Their last layers are combinations of three networks', whose features are the same."""
    last = [spec for spec in LAYOUT.tensors if spec.name.startswith("5.")]
    weights = torch.randn(NUM, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    rows = zoo[:1].repeat(NUM, 1)
    for spec in last:
        columns = slice(spec.offset, spec.offset + spec.numel)
        rows[:, columns] += weights @ (zoo[1:4, columns] - zoo[:1, columns])
    found = diversity(rows, evaluator)
    assert found["num_components_99"] <= 2 and found["latent_channels"] == 2


def test_latents_are_no_more_than_the_rows_are_enough_for(zoo, evaluator):
    latents = diversity(zoo, evaluator)["latent_channels"]
    most = UNet1DConditionConfig().most_latents(36)
    assert latents <= most and str(most) in diversity(zoo, evaluator)["heldout"]
    section = AutoencoderFunctionalConfig(latent_channels=latents)
    check_training(LAYOUT, RowOrder.of_runs(*[1] * NUM), section, UNet1DConditionConfig())


def test_without_rows_held_out_no_latents_are_recommended(zoo, evaluator):
    found = diversity(zoo[:5], evaluator)
    assert (found["num_heldout"], found["heldout"], found["latent_channels"]) == (0, {}, None)


def test_networks_whose_outputs_are_not_finite_are_left_out(zoo, evaluator):
    huge = torch.full((2, LAYOUT.num_parameters), 1e16)
    assert diversity(torch.cat([zoo, huge]), evaluator)["num_rows"] == NUM
    assert diversity(torch.cat([zoo[:1], huge]), evaluator) is None


# Whether there is anything to be learnt


def test_one_function_in_many_orders_of_hidden_units_is_nothing_to_be_learnt(zoo, evaluator, tmp_path):
    report = inspect(tmp_path, permuted(zoo[:1].repeat(NUM, 1)), evaluator)
    found = report["functional"]["diversity"]
    assert (found["kind"], found["latent_channels"]) == ("one_function", None)
    assert report["functional"]["basins"] == "many"
    text = printed(report)
    assert "no functional diversity to be learnt" in text and "nothing to be learnt" in text
    assert "--set autoencoder.kind=functional --set" not in text and "Do not train on this dataset as it is." in text


def test_neighbours_on_a_path_hardly_differ(zoo, evaluator, tmp_path):
    steps = torch.linspace(0, 1, 60)[:, None]
    rows = torch.lerp(zoo[:1], zoo[:1] + 0.1 * (zoo[1:2] - zoo[:1]), steps)
    found = diversity(rows, evaluator, [range(60)])
    assert found["kind"] == "path" and 0 < found["steps"] < 0.25 * found["disagreement"]
    assert diversity(zoo, evaluator, [range(NUM)])["kind"] == "diverse"
    save_parameter_dataset(rows, LAYOUT, tmp_path / "dataset", BASE, {"step": [*range(60)]})
    report = inspect_dataset(tmp_path / "dataset", evaluator, device="cpu")
    [entry] = [entry for entry in report["advice"] if "is a path" in entry["finding"]]
    assert entry["severity"] == "hint" and "independent runs" in entry["action"]


# What to do


def test_independent_networks_are_trained_on_by_what_they_compute(zoo, evaluator, tmp_path):
    report = inspect(tmp_path, zoo, evaluator)
    latents = report["functional"]["diversity"]["latent_channels"]
    assert {entry["severity"] for entry in report["advice"]} == {"warning"}
    [entry] = [entry for entry in report["advice"] if "different basins" in entry["finding"]]
    command = f"pdiff train {tmp_path / 'dataset'} --out … --set autoencoder.kind=functional"
    assert f"{command} --set autoencoder.latent_channels={latents}" in entry["action"]
    assert "needs no alignment" in entry["action"] and "collect.kind" not in entry["action"]
    text = printed(report)
    assert "Train on it with --set autoencoder.kind=functional" in text and f"{latents} latents" in text
    # What the default autoencoder lacks is of no concern.
    assert "default latent" not in text and "Do not train" not in text


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ({"base": None}, "name a base model (restore its layout.json)"),
        ({"task": None}, "name a task (restore its stats.json)"),
        ({}, "the examples of its task (digits) have to be there"),
    ],
)
def test_what_is_missing_for_it_is_said(zoo, tmp_path, missing, expected):
    report = inspect(tmp_path, zoo, None, **missing)
    [entry] = [entry for entry in report["advice"] if "independently trained" in entry["finding"]]
    assert expected in entry["action"] and "autoencoder.kind=functional" in entry["action"]
    assert "not measured: no" in printed(report)
