import json

import pytest
import torch
from matplotlib import image
from rich.console import Console
from torch import nn

from pdiff_hf.evaluation import build_groups, evaluate_groups, make_table, write_report
from pdiff_hf.layout import ParameterLayout


@pytest.fixture(scope="module")
def result():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    layout = ParameterLayout.from_model(model)
    originals = layout.flatten(model) + 0.1 * torch.randn(6, layout.num_parameters)
    groups = build_groups(originals, originals.flip(0) + 0.01, layout)
    images, labels = torch.randn(80, 3, 2, 2), torch.randint(4, (80,))
    splits = {"val": (images[:30], labels[:30]), "test": (images[30:], labels[30:])}
    return evaluate_groups(groups, model, layout, **splits)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "train_log.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": 1 / (s + 1), "lr": 1e-3}) + "\n" for s in range(50)))
    return path


def test_report_writes_its_files(result, log, tmp_path):
    written = write_report(
        result,
        tmp_path / "report",
        task={"dataset": "planted"},
        timings_s={"autoencoder": 3.25, "evaluate": 1.0},
        peak_rss_mb={"autoencoder": 512},
        gate={"explained_variance": 0.973, "accuracy_drop": 0.0012},
        logs={"Autoencoder": log, "Diffusion": log},
    )
    names = {"metrics.json", "report.md", "accuracy_similarity.png", "loss_curves.png"}
    assert {path.name for path in written} == {path.name for path in (tmp_path / "report").iterdir()} == names
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    assert metrics["groups"] == result.metrics["groups"]
    assert metrics["task"] == {"dataset": "planted"}
    assert metrics["timings_s"] == {"autoencoder": 3.25, "evaluate": 1.0}
    assert metrics["versions"]["torch"] == torch.__version__.split("+")[0]
    text = (tmp_path / "report/report.md").read_text()
    assert text.index(result.metrics["verdict"]) < text.index("| original |")
    for expected in (
        "![accuracy similarity](accuracy_similarity.png)",
        "97.3%",
        "0.12 points",
        "| autoencoder | 3.2 |",
    ):
        assert expected in text


def test_plots_are_drawn(result, log, tmp_path):
    write_report(result, tmp_path, logs={"Autoencoder": log})
    for name in ("accuracy_similarity.png", "loss_curves.png"):
        pixels = image.imread(tmp_path / name)
        assert pixels.shape[0] > 300 and pixels.shape[1] > 400
        assert pixels.std() > 0.05


def test_accuracies_are_percent_for_people(result):
    console = Console(width=160, record=True)
    console.print(make_table(result.metrics))
    text = console.export_text()
    mean = result.metrics["groups"]["generated"]["test_accuracy"]["mean"]
    assert f"{100 * mean:.2f}" in text
    assert all(name in text for name in result.metrics["groups"])
    assert result.metrics["verdict"][:60] in text
