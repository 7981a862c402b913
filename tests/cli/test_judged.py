"""Networks of any kind are imported with what judges them, and every later command judges them by it."""

import json
import sys

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from pdiff_hf import trust
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.results.metrics import Metrics
from small_regression import make_checkpoints

SMALL = ("--set", "diffusion.steps=20", "--set", "autoencoder.kind=pca")


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A current folder with modules of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("own_regression"):
            del sys.modules[name]


@pytest.fixture
def regression(own_folder):
    make_checkpoints(own_folder)
    return own_folder


def imported(pdiff, *options, base="own_regression.py:mlp", out="ds"):
    return pdiff("import", "nets", "--out", out, "--base", f"import:{base}", *options)


def test_a_regression_is_imported_trained_chosen_and_reported_by_its_own_error(pdiff, regression):
    code, out, err = imported(pdiff, "--task", "own_regression.py:errors")
    assert code == 0, err
    dataset = ParameterDataset("ds")
    stored = {"kind": "function", "function": "own_regression.py:errors", "metric": "mse", "higher_is_better": False}
    assert dataset.task == stored

    # Of the first checkpoint, the mean squared error on val is what torch says.
    import own_regression

    network = own_regression.mlp()
    network.load_state_dict(torch.load("nets/step-60.pt"))
    x, y = own_regression.examples(1)
    expected = nn.functional.mse_loss(network(x), y).item()
    assert f"Judged by mse (lower is better), own_regression.py:errors: {expected:.4g} for the first" in out

    code, out, err = pdiff("train", "ds", "--out", "run", *SMALL)
    assert code == 0, err
    gate = json.loads((regression / "run/autoencoder/reconstruction.json").read_text())
    assert gate["score_drop"] <= 1 and "accuracy_drop" not in gate and "reconstruction takes mse from" in out

    code, out, err = pdiff(
        "generate",
        "run/pipeline",
        "--out",
        "best",
        "--num-samples",
        30,
        "--select",
        "val",
        "--top",
        3,
        "--dataset",
        "ds",
    )
    assert code == 0, err
    choice = json.loads((regression / "best/index.json").read_text())["choice"]
    assert choice["val_score"] == sorted(choice["val_score"]) and choice["num_val"] == 60
    assert "Val mse: " in out and "accuracy" not in out and "%" not in out
    network.load_state_dict(load_file(sorted((regression / "best").glob("*.safetensors"))[0]))
    assert choice["val_score"][0] == pytest.approx(nn.functional.mse_loss(network(x), y).item(), rel=1e-5)

    assert pdiff("generate", "run/pipeline", "--out", "run/generated", "--num-samples", 20)[0] == 0
    code, out, err = pdiff("evaluate", "run", "--dataset", "ds")
    assert code == 0, err
    metrics = Metrics.read("run/report/metrics.json")
    assert metrics.metric.title == "mse (lower is better)" and metrics.num_test == 60
    on_test = [own_regression.errors(n, "test").mean().item() for n in _networks(own_regression, dataset)]
    assert metrics.original.score.mean == pytest.approx(sum(on_test) / len(on_test), rel=1e-5)
    assert metrics.original.score.ci95[0] < metrics.original.score.mean < metrics.original.score.ci95[1]
    # Less is better: what is performant is not above the mean.
    share = sum(value <= metrics.original.score.mean for value in on_test) / len(on_test)
    assert metrics.original.novel_and_performant.performant == pytest.approx(share)
    assert metrics.groups["noise_0.1"].difference_to_original.difference > 0
    assert metrics.groups["noise_0.1"].cost.gain_per_second < 0
    assert metrics.ensembles == {} and "test_nll" not in metrics.original.to_dict()
    report = (regression / "run/report/report.md").read_text()
    for words in (
        "Test mse (lower is better)",
        "in mse, 95 % interval",
        "own_regression.py:errors",
        "Left out, as a score",
    ):
        assert words in report, words
    for words in ("accuracy of", "test accuracy", "McNemar", "IoU to", "Calibration", "NLL", " points"):
        assert words not in report, words
    assert "mse" in (regression / "run/report/report.html").read_text()
    assert "accuracy" not in out and "mean mse" in out


def _networks(code, dataset):
    for vector in dataset.vectors(rows=slice(None)):
        network = code.mlp()
        dataset.layout.load_into(network, vector)
        yield network


def test_a_single_number_of_which_more_is_better_has_intervals_over_networks_alone(pdiff, regression):
    assert imported(pdiff)[0] == 0
    assert pdiff("train", "ds", "--out", "run", *SMALL, "--task", "own_regression.py:fit")[0] == 0
    assert pdiff("generate", "run/pipeline", "--out", "run/generated", "--num-samples", 20)[0] == 0
    code, _, err = pdiff("evaluate", "run", "--dataset", "ds", "--task", "import:own_regression:fit")
    assert code == 0, err
    metrics = Metrics.read("run/report/metrics.json")
    assert (metrics.metric.name, metrics.metric.higher_is_better, metrics.num_test) == ("score", True, 1)
    assert metrics.generated.score.ci95 is not None and metrics.generated.selected.test_ci95 is None
    # Chosen by the scores that are reported, a greedy soup would be flattered.
    assert "uniform_soup" in metrics.groups and "greedy_soup" not in metrics.groups
    report = (regression / "run/report/report.md").read_text()
    assert "Test score (higher is better)" in report and "has no argument `split`" in report
    assert "one score for each network" in report


def test_code_that_a_folder_names_is_not_run_unless_it_was_typed_or_is_trusted(pdiff, regression, monkeypatch):
    assert imported(pdiff, "--task", "own_regression.py:errors")[0] == 0
    # On another machine, nobody has typed it.
    monkeypatch.setattr(trust, "trusted_file", lambda: regression / "another.json")
    (regression / "own_regression.py").write_text("raise SystemExit('was run')")
    for name in [name for name in sys.modules if name.startswith("own_regression")]:
        del sys.modules[name]
    stats = json.loads((regression / "ds/stats.json").read_text())
    base = {"--trust": "own_regression.py:mlp"}
    code, _, err = pdiff("train", "ds", "--out", "run", *SMALL, *next(iter(base.items())))
    assert code == 2 and len(err.strip().splitlines()) == 1 and "was run" not in err
    assert "--trust own_regression.py:errors" in err and stats["metadata"]["task"]["function"] in err


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("absent.py:errors", "absent.py:errors: expected a file at absent.py, found none"),
        ("own_regression.py:absent", "own_regression.py has nothing called 'absent'"),
        ("own_regression.py:number", "expected a function of a network, found int"),
        ("own_regression.py:nothing", "expected a number or scores (N,) of a network, found NoneType"),
        ("own_regression.py:rows_of_each", "found the shape (60, 1)"),
        ("own_regression.py:nan", "expected finite scores of a network, found nan"),
        ("own_regression.py:broken", "has no attribute 'no_such_layer' (own_regression.py, line "),
        ("own_regression.py:uneven", "expected 1 scores of every network, as of the first one, found 2"),
        ("import:absent_module:errors", "No module named 'absent_module'"),
        ("cifar", "expected the name of a data set (ag_news, cifar10"),
        ("absent.yaml", "absent.yaml cannot be read"),
        ('{"dataset": "digits", "imagesize": 8}', "the nearest valid key is 'task.image_size'"),
        (
            '{"kind": "function", "function": "own_regression.py:fit", "metric": "accuracy"}',
            "accuracy is that of class",
        ),
        ("digits", "expected a network that takes images (1, 8, 8), found that it fails on them"),
    ],
)
def test_what_cannot_judge_the_networks_is_said_in_a_line_and_nothing_is_left(pdiff, regression, task, message):
    code, _, err = imported(pdiff, "--task", task)
    assert code == 2 and message in err, err
    assert len(err.strip().splitlines()) == 1 and not (regression / "ds").exists()


def test_a_task_is_written_in_a_file_and_names_its_metric(pdiff, regression):
    text = "kind: function\nfunction: own_regression.py:fit\nmetric: negative_energy\nhigher_is_better: false\n"
    (regression / "task.yaml").write_text(text)
    code, out, err = imported(pdiff, "--task", "task.yaml")
    assert code == 0 and "negative_energy (lower is better)" in out, err
    code, out, err = pdiff("inspect", "ds")
    out = " ".join(out.split())
    assert code == 0 and "negative_energy" in out and "lower is better" in out, err
    assert "not measured: a function gives a score" in out


def test_images_of_a_folder_judge_an_imported_classification(pdiff, own_folder):
    """Bright images are of one class, dark ones of the other: a network that adds up the pixels knows them all."""
    for split, num in (("train", 40), ("test", 20)):
        for number in range(num):
            place = own_folder / "images" / split / ("dark" if number % 2 else "bright")
            place.mkdir(parents=True, exist_ok=True)
            value = 20 + number if number % 2 else 200 + number
            Image.new("L", (6, 6), value).save(place / f"{number}.png")
    (own_folder / "nets").mkdir()
    for number in range(8):
        weight = torch.stack([torch.ones(36), -torch.ones(36)]) * (1 + number / 10)
        # The last one has its classes exchanged.
        state = {"1.weight": weight if number < 7 else -weight, "1.bias": torch.zeros(2)}
        torch.save(state, own_folder / "nets" / f"{number}.pt")
    task = {"dataset": "images", "in_chans": 1, "mean": [0.5], "std": [0.5], "val_size": 10}
    base = ("--base", "import:pdiff_hf.tasks.networks:mlp3", "--kwargs")
    arguments = json.dumps({"in_features": 36, "hidden": [], "num_classes": 2})
    code, out, err = pdiff("import", "nets", "--out", "ds", *base, arguments, "--task", json.dumps(task))
    assert code == 0 and "Judged by accuracy, 10 val examples of images: 100.00 % for the first" in out, err
    stored = ParameterDataset("ds").task
    assert (stored["image_size"], stored["in_chans"], stored["kind"]) == (6, 1, "image_classification")
    code, out, err = pdiff("inspect", "ds", "--json")
    averaging = json.loads(out)["functional"]["averaging"]
    assert code == 0 and averaging["original_accuracy"] == pytest.approx(7 / 8), err


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
