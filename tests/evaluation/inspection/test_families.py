import copy
import io

import pytest
import torch
from rich.console import Console
from torch import nn

from pdiff_hf import BaseModel, ParameterLayout
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.importing.importer import import_checkpoints
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.evaluation.inspection.families import find_families
from pdiff_hf.evaluation.inspection.inspect_dataset import inspect_dataset
from pdiff_hf.evaluation.inspection.tables import make_tables
from pdiff_hf.networks import mlp3

NETWORK = {"in_features": 64, "hidden": (8, 8), "num_classes": 10}
LAYOUT = ParameterLayout.from_model(mlp3(**NETWORK))
RATES = (1e-3, 3e-3, 1e-2)


def train(digits, model, seed, steps, rate, every=0):
    """Train a network on; its vectors at every n-th step."""
    generator, rows = torch.Generator().manual_seed(seed), []
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(steps):
        batch = torch.randint(1000, (64,), generator=generator)
        nn.functional.cross_entropy(model(digits[0][batch]), digits[1][batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if every and step % every == 0:
            rows.append(LAYOUT.flatten(model))
    return rows


@pytest.fixture(scope="module")
def bases(digits):
    """Three networks, each trained from its own initialisation."""
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        networks.append(mlp3(**NETWORK))
        train(digits, networks[-1], seed, 150, 0.01)
    return networks


@pytest.fixture(scope="module")
def fine_tunes(digits, bases):
    """Six fine-tunes of each of the networks."""
    found = []
    for seed, base in enumerate(bases):
        for number in range(6):
            model = copy.deepcopy(base)
            train(digits, model, 10 * seed + number, 60, RATES[number % 3])
            found.append(LAYOUT.flatten(model))
    return torch.stack(found)


@pytest.fixture(scope="module")
def trajectory(digits):
    """One run from its initialisation on."""
    torch.manual_seed(5)
    return torch.stack(train(digits, mlp3(**NETWORK), 5, 240, 0.01, every=8))


@pytest.fixture(scope="module")
def evaluator(digits):
    return ParameterEvaluator(mlp3(**NETWORK), LAYOUT, digits[0][1000:], digits[1][1000:])


def timed(*steps):
    return [[*enumerate(steps)]]


def rows_of(found):
    return None if found is None else (found["rows"], found["alone"])


# Which rows belong together


@pytest.mark.parametrize("times", [[], timed(*range(12))], ids=["unordered", "one run"])
def test_fine_tunes_of_two_networks_are_two_families(fine_tunes, evaluator, times):
    for judge in (None, evaluator):
        found = find_families(fine_tunes[:12], times, judge)
        assert rows_of(found) == ([[*range(6)], [*range(6, 12)]], [])
        assert found["between"] > 3 * found["within"]
    assert found["barrier"] > 0.1


def test_families_are_found_in_any_order(fine_tunes):
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    found = find_families(fine_tunes[order], timed(*range(18)))
    assert sorted(sorted(order[rows].tolist()) for rows in found["rows"]) == [
        [*range(6)],
        [*range(6, 12)],
        [*range(12, 18)],
    ]


def test_runs_from_networks_of_their_own_are_families(digits, bases):
    rows = [train(digits, copy.deepcopy(base), 3, 80, 0.003, every=10) for base in bases]
    times = [[(8 * run + step, step) for step in range(8)] for run in range(3)]
    found = find_families(torch.stack([row for run in rows for row in run]), times)
    assert rows_of(found) == ([[*range(8 * run, 8 * run + 8)] for run in range(3)], [])


def test_what_belongs_together_is_one_family(digits, bases, fine_tunes, trajectory):
    assert find_families(fine_tunes[:6], []) is None
    assert find_families(trajectory, []) is None
    assert find_families(trajectory, timed(*range(30))) is None
    rows = [train(digits, copy.deepcopy(bases[0]), seed, 40, 0.003, every=5) for seed in range(4)]
    assert find_families(torch.stack([row for run in rows for row in run]), []) is None


@pytest.mark.parametrize("num_rows", [2, 3, 12])
def test_independent_networks_are_no_families(num_rows):
    torch.manual_seed(0)
    rows = torch.stack([LAYOUT.flatten(mlp3(**NETWORK)) for _ in range(num_rows)])
    assert find_families(rows, []) is None
    assert find_families(rows.repeat(2, 1), []) is None


def test_a_run_with_gaps_between_its_steps_is_one_family(trajectory):
    numbers = [0, 1, 2, 15, 16, 17, 27, 28, 29]
    assert find_families(trajectory[numbers], timed(*numbers)) is None


def test_families_without_a_barrier_between_them_are_one(fine_tunes, evaluator):
    rows = torch.cat([fine_tunes[:6], fine_tunes[:6]])
    # The same for all classes, which changes no prediction.
    rows[6:, LAYOUT.tensors[-1].offset :] += 50
    assert rows_of(find_families(rows, [])) == ([[*range(6)], [*range(6, 12)]], [])
    assert find_families(rows, [], evaluator) is None


def test_rows_far_from_all_others_stand_alone(fine_tunes):
    rows = torch.cat([fine_tunes[:6], fine_tunes[12:13]])
    assert rows_of(find_families(rows, [])) == ([[*range(6)]], [6])
    rows = fine_tunes[:6].clone()
    rows[3, 40] += 1e10
    found = find_families(rows, timed(*range(6)))
    assert rows_of(found) == ([[0, 1, 2, 4, 5]], [3])
    assert rows_of(find_families(torch.cat([rows, fine_tunes[6:12]]), [])) == ([[0, 1, 2, 4, 5], [*range(6, 12)]], [3])


# What inspect says


def printed(report):
    file = io.StringIO()
    Console(file=file, width=2000).print(make_tables(report))
    return file.getvalue()


@pytest.fixture
def soup(tmp_path, fine_tunes):
    """Files without numbers of steps."""
    (tmp_path / "soup").mkdir()
    for number, vector in enumerate(fine_tunes[:12]):
        torch.save(LAYOUT.unflatten(vector), tmp_path / "soup" / f"ft{number // 6}{number % 6}.pt")
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK)
    import_checkpoints(tmp_path / "soup", tmp_path / "ds", base_model=base, progress=False)
    return tmp_path / "ds"


def test_files_without_numbers_have_no_time(soup, tmp_path):
    dataset = ParameterDataset(soup)
    assert dataset.unordered_runs == {"soup"}
    report = inspect_dataset(soup, device="cpu")
    assert report["runs"]["soup"]["is_ordered"] is False and report["geometry"]["effective_rows"] is None
    assert report["runs"]["soup"]["autocorrelation_time"] is None
    text = printed(report)
    assert "no steps or epochs are known" in text
    assert not any(word in text for word in ("correlations last", "path from the first", "autocorrelation time"))
    assert dataset.copy_first(4, tmp_path / "first").unordered_runs == {"soup"}
    dataset.append(torch.zeros(1, LAYOUT.num_parameters), {"run": ["b"], "step": [5]})
    assert dataset.unordered_runs == {"soup"}


def test_imports_from_before_it_was_recorded_have_no_time_either(soup):
    file = soup / "stats.json"
    file.write_text(file.read_text().replace("unordered_runs", "other"))
    assert ParameterDataset(soup).unordered_runs == {"soup"}


def test_epochs_in_names_are_time(tmp_path, trajectory):
    (tmp_path / "run").mkdir()
    for epoch in (1, 2, 3, 10):
        torch.save(LAYOUT.unflatten(trajectory[epoch]), tmp_path / "run" / f"epoch_{epoch}.pt")
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK)
    import_checkpoints(tmp_path / "run", tmp_path / "ds", base_model=base, progress=False)
    assert not ParameterDataset(tmp_path / "ds").unordered_runs
    report = inspect_dataset(tmp_path / "ds", device="cpu")
    assert report["geometry"]["effective_rows"] >= 1


def test_the_families_are_named_by_rows_and_files_with_what_to_do(soup):
    report = inspect_dataset(soup, device="cpu")
    assert report["families"]["files"] == [["ft00.pt", "ft05.pt"], ["ft10.pt", "ft15.pt"]]
    [entry] = [entry for entry in report["advice"] if "families" in entry["finding"]]
    assert entry["severity"] == "warning"
    assert "rows 0-5 (ft00.pt … ft05.pt) and rows 6-11 (ft10.pt … ft15.pt)" in entry["finding"]
    assert "autoencoder.kind=functional" in entry["action"] and "--metrics-pattern" in entry["action"]
    assert "name a task (pdiff import … --task …)" in entry["action"]


def test_families_in_different_basins_stop(soup, evaluator):
    report = inspect_dataset(soup, evaluator, device="cpu")
    [entry] = [entry for entry in report["advice"] if "families" in entry["finding"]]
    assert entry["severity"] == "stop" and "the error rises by" in entry["finding"]


@pytest.mark.parametrize("origin", ["collect", "runs", "import", "recording"])
def test_advice_is_what_whoever_made_the_dataset_can_do(tmp_path, fine_tunes, origin):
    rows = torch.cat([fine_tunes, fine_tunes + 0.01])
    rows[:, LAYOUT.tensors[1].offset : LAYOUT.tensors[2].offset] = 0.5
    metadata = {"collect": {"collect": {}}, "runs": {"collect": {"kind": "runs"}}, "import": {"import": {}}}
    save_parameter_dataset(rows, LAYOUT, tmp_path / "ds", metadata=metadata.get(origin))
    report = inspect_dataset(tmp_path / "ds", device="cpu")
    assert report["origin"] == origin
    actions = " ".join(entry["action"] for entry in report["advice"])
    assert ("collect." in actions) == (origin in ("collect", "runs"))
    assert ("collect.num_checkpoints" in actions) == (origin == "collect")
    assert ("pdiff import" in actions) == (origin == "import")
    assert ("ParameterLayout" in actions) == (origin == "recording")
    assert f"pdiff train {tmp_path / 'ds'} --out … --set autoencoder.latent_channels=" in actions
    missing = {"collect": "layout.json, restore its stats", "runs": "layout.json, restore its stats"}
    missing |= {
        "import": "pdiff import … --base …, pdiff import … --task …",
        "recording": "the base_model of ParameterRecorder",
    }
    assert missing[origin] in actions


def test_headline_says_that_the_gate_is_likely_to_refuse(tmp_path):
    rows = torch.randn(200, LAYOUT.num_parameters, generator=torch.Generator().manual_seed(0))
    save_parameter_dataset(rows, LAYOUT, tmp_path / "ds")
    report = inspect_dataset(tmp_path / "ds", device="cpu")
    gate = report["gate"]
    assert gate["min_explained_variance"] == 0.95 and gate["will_pass"] is False
    assert gate["explained_by_kind"].keys() == {"weights", "biases"}
    assert gate["explained_variance"] == pytest.approx(report["geometry"]["reconstruction"]["heldout"], abs=1e-9)
    assert "The gate is likely to refuse it as it is." in printed(report)
    assert "It can be trained on" not in printed(report)
