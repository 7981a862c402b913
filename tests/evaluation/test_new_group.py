"""A group that is registered here and nowhere else: everything that shows groups shows it."""

import json

import pytest
from rich.console import Console

from pdiff_hf.evaluation.groups import GROUPS, Group, GroupInputs
from pdiff_hf.report.plots.curves import plot_ensembles
from pdiff_hf.report.plots.networks import plot_accuracy_histograms, plot_accuracy_similarity
from pdiff_hf.report.write import make_table, write_report
from pdiff_hf.results.card_lines import comparison_lines, results_table
from small_results import evaluate


def shrunk(given: GroupInputs):
    """The first originals at half their size."""
    return given.originals[: given.num] / 2


@pytest.fixture
def result(monkeypatch):
    places = ("points", "matrix", "histogram", "ensembles")
    group = Group(shrunk, "average", "originals of half the size", "purple", "$h$", places, "half originals")
    monkeypatch.setitem(GROUPS, "shrunk", group)
    return evaluate()


def test_it_is_made_and_evaluated_with_its_part_in_the_report(result):
    group = result.metrics.groups["shrunk"]
    assert len(result.groups["shrunk"].test_score) == group.n == 5
    assert group.cost.seconds > 0
    assert result.iou_sizes["shrunk"] == 5 and "swag" not in result.iou_sizes
    assert set(result.metrics.ensembles) == {"generated", "original", "swag", "shrunk", "best_single"}
    assert "shrunk" in result.metrics.comparisons and "shrunk" in result.metrics.rivals()


def test_metrics_json_and_report_say_what_it_is(result, tmp_path):
    write_report(result, tmp_path)
    entry = json.loads((tmp_path / "metrics.json").read_text())["groups"]["shrunk"]
    expected = {"role": "average", "label": "half originals", "description": "originals of half the size"}
    assert {key: entry[key] for key in expected} == expected and entry["color"] == "purple"
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert markdown.count("| shrunk |") >= 6, "groups, similarity, shares, differences, ensembles, calibration, cost"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<span class="dot" style="background: var(--purple)"></span>shrunk' in page
    console = Console(width=120, record=True)
    console.print(make_table(result.metrics))
    assert "shrunk" in console.export_text()


def test_figures_show_it(result):
    mean = 100 * result.metrics.groups["shrunk"].test_accuracy.mean
    for plot in (
        plot_accuracy_similarity(result.metrics, result.groups),
        plot_accuracy_histograms(result.metrics, result.groups),
        plot_ensembles(result.metrics.ensembles),
    ):
        drawn = plot.drawings()["wide"]
        assert "half originals" in plot.alt
        assert "half originals" in drawn.svg + "".join(entry.text for entry in drawn.legend)
    legend = plot_accuracy_similarity(result.metrics).drawings()["wide"].legend
    assert f"half originals {mean:.2f} %" in [entry.text for entry in legend]
    assert (
        "Small: single networks (original, generated, average 16, half originals)"
        in plot_accuracy_similarity(result.metrics, result.groups).note
    )


def test_cards_compare_generated_networks_with_it(result):
    assert "| shrunk | 5 |" in results_table(result.metrics)
    assert any(line.startswith("originals of half the size: ") for line in comparison_lines(result.metrics))


def test_verdict_counts_it_among_the_averages(result):
    metrics = result.metrics.model_copy(deep=True)
    metrics.comparisons["shrunk"].difference, metrics.comparisons["shrunk"].ci95 = -0.9, [-0.95, -0.85]
    assert metrics.hardest_average() == "shrunk"
