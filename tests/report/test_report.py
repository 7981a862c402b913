import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from rich.console import Console

from pdiff_hf.evaluation.groups import GROUPS
from pdiff_hf.report.protocol import protocol
from pdiff_hf.report.write import make_table, write_report
from pdiff_hf.results.metrics import Metrics
from pdiff_hf.results.records import Denoiser, Distribution
from small_results import evaluate

PLOTS = ("accuracy_similarity", "accuracy_histograms", "latent_pca", "iou_matrix", "ensembles", "loss_curves")


@pytest.fixture(scope="module")
def result():
    return evaluate()


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    log = folder / "train_log.jsonl"
    log.write_text("".join(json.dumps({"step": s, "loss": 1 / (s + 1), "lr": 1e-3}) + "\n" for s in range(50)))
    written = write_report(
        result,
        folder / "report",
        task={"dataset": "planted"},
        timings_s={"autoencoder": 3.25, "evaluate": 1.0},
        peak_rss_mb={"autoencoder": 512},
        gate={"explained_variance": 0.973, "accuracy_drop": 0.0012},
        logs={"autoencoder": log, "diffusion": log},
        latents={"original": torch.randn(6, 8), "generated": torch.randn(5, 8)},
    )
    assert {path.name for path in written} == {path.name for path in (folder / "report").iterdir()}
    return folder / "report"


def test_report_writes_its_files(folder):
    names = {"metrics.json", "report.md", "report.html", *(f"{name}.png" for name in PLOTS)}
    assert {path.name for path in folder.iterdir()} == names
    assert all((folder / name).stat().st_size > 1000 for name in names)


def test_metrics_are_the_results_and_where_they_come_from(result, folder):
    metrics = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert metrics["groups"] == result.metrics.to_dict()["groups"]
    assert metrics["task"] == {"dataset": "planted"}
    assert metrics["timings_s"] == {"autoencoder": 3.25, "evaluate": 1.0}
    assert metrics["versions"]["torch"] == torch.__version__.split("+")[0]


def test_markdown_is_complete(result, folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert text.index(result.metrics.to_dict()["verdict"]) < text.index("| original |")
    assert all(f"]({name}.png)" in text for name in PLOTS)
    group = result.metrics.to_dict()["groups"]["generated"]
    selected = result.metrics.to_dict()["selected_comparisons"]["original"]
    ensemble = result.metrics.to_dict()["ensembles"]["generated"]["5"]["accuracy"]
    for expected in (
        "97.30 %",
        "0.12 points",
        "| autoencoder | 3.2 | 512 |",
        f"{100 * ensemble['mean']:.2f} ({100 * ensemble['ci95'][0]:.2f}–{100 * ensemble['ci95'][1]:.2f})",
        f"| {selected['p_value']:.3f} | {selected['only_generated']} | {selected['only_other']} |",
        f"{group['test_ece']['mean']:.4f} ({group['test_ece']['ci95'][0]:.4f}–{group['test_ece']['ci95'][1]:.4f})",
        f"| {group['spread']:.2f} |",
        "McNemar",
        "Gain per second",
    ):
        assert expected in text, expected
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for header, row in pairwise(rows):
        if row.startswith("| ---"):
            assert header.count("|") == row.count("|")


def test_report_needs_no_more_than_the_result(result, tmp_path):
    written = {path.name for path in write_report(result, tmp_path)}
    assert "report.html" in written and "loss_curves.png" not in written and "latent_pca.png" not in written
    assert "loss_curves" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def distribution_of(result):
    found = {"two_sample_accuracy": 0.5, "coverage": 0.9}
    groups = {
        "original": Distribution.parse(
            {**found, "n_effective": 4.0, "ci95": {"two_sample_accuracy": [0.47, 0.53]}}, "x"
        ),
        "generated": Distribution.parse(
            {**found, "mmd_p": 0.25, "nearest_train_ratio": 0.97, "ci95": {"nearest_train_ratio": [0.9, 1.05]}}, "x"
        ),
        "gaussian_latents": Distribution.parse({**found, "two_sample_accuracy": 0.86}, "x"),
    }
    losses = {"loss": 0.5, "white_gaussian": 1.02, "gaussian": 0.99, "difference_ci95": [-0.52, -0.46], "n": 30}
    denoiser = Denoiser.parse({"kept_step": 400, "held_out": {"between": losses, "end": {**losses, "loss": 2.0}}}, "x")
    metrics = result.metrics.model_copy(update={"distribution": groups, "denoiser": denoiser})
    return replace(result, metrics=metrics)


def test_report_says_whether_it_is_the_distribution_and_what_was_learned(result, tmp_path):
    write_report(distribution_of(result), tmp_path)
    text, page = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))
    assert "| original | 50 (47–53) | – | – | 90 |" in text
    assert "| generated | 50 | 0.250 | 0.97 (0.90–1.05) | 90 |" in text
    assert "count like 4 independent ones" in text and "those of step 400." in text
    assert "| between | 0.500 | 1.020 | 0.990 | −0.490 (−0.520 to −0.460) | 30 |" in text
    assert "End: the last tenth of a run, which is drift" in text and "Block:" not in text
    assert "Of end nothing that was learned holds" in text
    for title in ("Is it the distribution?", "What the denoiser has learned"):
        assert f"## {title}" in text and title in page
    read = Metrics.read(tmp_path / "metrics.json")
    assert read.distribution["gaussian_latents"].two_sample_accuracy == 0.86 and read.denoiser.kept_step == 400


def test_a_denoiser_that_is_its_gaussian_is_called_so(result, tmp_path):
    found = distribution_of(result)
    found.metrics.denoiser.kept_step = 0
    write_report(found, tmp_path)
    assert "step 0, where it is this Gaussian" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_reports_of_0_1_have_no_such_sections(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "Is it the distribution?" not in text and "What the denoiser has learned" not in text


def test_terminal_says_how_well_a_classifier_tells_the_networks(result):
    console = Console(width=120, record=True)
    console.print(make_table(distribution_of(result).metrics))
    assert "a generated from a held-out network in 50 % of the cases" in console.export_text()
    assert "A classifier" not in str(make_table(result.metrics).caption)


def test_terminal_table_fits_into_120_columns(result):
    assert {"fine_tuned", "swag", "greedy_soup"} < set(GROUPS)
    metrics = result.metrics.to_dict()
    metrics["groups"] |= dict.fromkeys(GROUPS, metrics["groups"]["swag"])
    for group in metrics["groups"].values():  # the widest that can be
        group["test_accuracy"] |= {"mean": 1.0, "ci95": [1.0, 1.0]}
        group["selected"] |= {"test_accuracy": 1.0, "test_ci95": [1.0, 1.0]}
        group["difference_to_original"] = {"difference": -0.5, "ci95": [-0.6, -0.4]}
    console = Console(width=200, record=True)
    console.print(make_table(Metrics.from_dict(metrics)))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    rows = [line for line in lines if "│" in line]
    names = "".join(line.split(" │")[0].strip() for line in rows)
    assert all(name in names for name in metrics["groups"])
    assert max(map(len, rows)) <= 120


def test_accuracies_are_percent_for_people(result):
    console = Console(width=120, record=True)
    console.print(make_table(result.metrics))
    text = console.export_text()
    group = result.metrics.to_dict()["groups"]["generated"]
    low, high = group["test_accuracy"]["ci95"]
    assert f"{100 * group['test_accuracy']['mean']:.2f} ({100 * low:.2f}–{100 * high:.2f})" in text
    names = "".join(line.split(" │")[0].strip() for line in text.splitlines())
    assert all(name in names for name in result.metrics.groups)
    assert " ".join(result.metrics.to_dict()["verdict"].split()[:8]) in text


H200 = {"cpu": "x", "cores": 16, "memory_gb": 128.0, "accelerator": "1 × NVIDIA H200", "device": "NVIDIA H200"}


def test_device_and_precision_are_said_as_far_as_they_are_known(result):
    def last(hardware):
        return protocol(result.metrics.model_copy(update={"hardware": hardware}))[-1]

    assert last({"device": "cpu"}) == "Evaluated on the CPU, with products in float32."
    known = {"device_memory_gb": 139.8, "tf32": {"training": True, "evaluation": False}}
    assert last(H200 | known) == (
        "Evaluated on NVIDIA H200 with 139.8 GiB of memory, with products of float32 values in float32; trained with "
        "those in TF32."
    )
    assert last(H200) == "Evaluated on NVIDIA H200."
    # Metrics of earlier versions do not know.
    for hardware in (None, {"cpu": "x", "cores": 2, "memory_gb": 8, "accelerator": None}):
        assert last(hardware) == result.metrics.intervals


def test_peaks_on_the_accelerator_are_beside_those_of_the_machine(result, tmp_path):
    seconds, peaks = {"autoencoder": 3.25, "evaluate": 1.0}, {"autoencoder": 512.0, "evaluate": 600.0}
    write_report(result, tmp_path, timings_s=seconds, peak_rss_mb=peaks, peak_device_mb={"autoencoder": 20480.0})
    assert Metrics.read(tmp_path / "metrics.json").peak_device_mb == {"autoencoder": 20480.0}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "peak on the accelerator (MB)" in text and "| autoencoder | 3.2 | 512 | 20480 |" in text
