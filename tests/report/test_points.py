import re

import numpy as np
import pytest
import torch

from pdiff_hf.evaluation.similarity import wrong_iou
from pdiff_hf.report.charts import make_chart
from pdiff_hf.report.plots.curves import plot_ensembles
from pdiff_hf.report.plots.maps import plot_latent_pca
from pdiff_hf.report.plots.networks import plot_accuracy_similarity
from pdiff_hf.report.plots.points import outline
from pdiff_hf.report.plots.population import plot_population
from pdiff_hf.report.plots.tasks import plot_condition_map
from small_results import evaluate

NAMES = {"original": [f"row {number}" for number in range(6)], "generated": [f"{n:05}.st" for n in range(5)]}


@pytest.fixture(scope="module")
def result():
    return evaluate()


@pytest.fixture(scope="module")
def chart(result):
    return make_chart(plot_accuracy_similarity(result.metrics, result.groups, NAMES))


def series_of(chart, group, fields=None):
    number = [entry.group for entry in chart.legend].index(group)
    found = [place for place, series in enumerate(chart.data["series"]) if series["group"] == number]
    return [place for place in found if fields is None or chart.data["series"][place]["fields"][0] == fields]


def test_a_network_is_told_with_its_file_and_its_nearest_original(result, chart):
    (place,) = series_of(chart, "generated", "network")
    series, group = chart.data["series"][place], result.groups["generated"]
    assert series["fields"] == ["network", "test accuracy", "nearest original", "IoU of mistakes with it"]
    for number, row in enumerate(series["rows"]):
        nearest, iou = group.iou_nearest[number].item(), group.iou_max[number].item()
        accuracy = group.test_score[number].item()
        assert row == (f"{number:05}.st", f"{100 * accuracy:.2f} %", f"row {nearest}", f"{iou:.3f}")


def test_the_nearest_original_is_another_one_of_the_largest_iou(result):
    known = result.groups["original"]
    blocks = np.cumsum([0, *result.iou_sizes.values()])
    among = result.iou[: blocks[1], : blocks[1]].clone().fill_diagonal_(-1)
    assert result.iou_sizes["original"] == len(known.iou_max)
    assert torch.equal(known.iou_nearest, among.argmax(1))
    assert (wrong_iou(torch.ones(1, 2) > 0, torch.ones(1, 2) > 0) == 1).all()


@pytest.mark.parametrize("width", ["wide", "narrow"])
def test_every_place_is_that_of_a_mark_in_the_svg(chart, width):
    for number in range(len(chart.legend)):
        # The groups of a number, up to the next one or the axes.
        svg = chart.svgs[width]
        parts = [part for part in re.split(r"(?=<g data-group=)", svg) if part.startswith(f'<g data-group="{number}"')]
        marks = {
            (round(float(x)), round(float(y)))
            for part in parts
            for x, y in re.findall(r'<use [^>]*\bx="([\d.-]+)" y="([\d.-]+)"', part)
        }
        known = [p for place, series in enumerate(chart.data["series"]) if series["group"] == number
                 for p in chart.data["places"][width][place] if p]  # fmt: skip
        assert known or not marks
        for x, y in known:
            assert any(abs(x - a) <= 1 and abs(y - b) <= 1 for a, b in marks), (chart.legend[number], x, y)


def test_all_marks_of_a_group_can_be_hidden(result, chart):
    assert all(chart.can_hide) and {entry.group for entry in chart.legend} == set(result.metrics.groups)
    for width in ("wide", "narrow"):
        number = [entry.group for entry in chart.legend].index("generated")
        # The cloud, the mean, and the interval: a line, a bar and two ends.
        assert chart.svgs[width].count(f'data-group="{number}"') == 6
        assert "generated" not in chart.svgs[width], "its legend is the page's"


def test_the_png_keeps_its_legend(result):
    figure = plot_accuracy_similarity(result.metrics, result.groups).draw(False)
    assert any("generated" in text.get_text() for text in figure.axes[0].get_legend().get_texts())


def test_points_beyond_the_edge_have_no_place(result):
    latents = {"original": torch.randn(300, 3, generator=torch.Generator().manual_seed(0))}
    latents["original"][7] = 1e6
    plot = plot_latent_pca(latents, result.metrics)
    chart = make_chart(plot)
    places = chart.data["places"]["wide"][0]
    assert places[7] is None and sum(place is not None for place in places) >= 290
    assert len(places) == len(chart.data["series"][0]["rows"]) == 300


def test_latents_of_networks_say_what_is_known_of_them(result):
    latents = {"original": torch.randn(6, 4), "generated": torch.randn(5, 4)}
    latents["generated"][1] = torch.nan
    chart = make_chart(plot_latent_pca(latents, result.metrics, result.groups, NAMES))
    (place,) = series_of(chart, "generated")
    rows = chart.data["series"][place]["rows"]
    assert [row[0] for row in rows] == ["00000.st", "00002.st", "00003.st", "00004.st"]
    assert rows[1][1] == f"{100 * result.groups['generated'].test_score[2].item():.2f} %"


def test_more_networks_than_are_drawn_are_said(result, monkeypatch):
    monkeypatch.setattr("pdiff_hf.report.plots.networks.MAX_POINTS", 4)
    plot = plot_accuracy_similarity(result.metrics, result.groups)
    assert len(plot.points["networks", "generated"].rows) == 4
    assert "Drawn are 4 of original, 4 of generated" in plot.note


def test_ensembles_are_told_with_their_intervals(result):
    chart = make_chart(plot_ensembles(result.metrics.ensembles))
    (_, nll, _) = series_of(chart, "generated")
    series, found = chart.data["series"][nll], result.metrics.ensembles["generated"]
    assert series["fields"] == ("networks in the ensemble", "NLL (95 %)")
    for row, place in zip(series["rows"], chart.data["places"]["wide"][nll], strict=True):
        mean = found[row[0]].nll.mean if row[0] in found else None
        assert (place is None) == (mean is None)
        assert mean is None or row[1].startswith(f"{mean:.4f} (")
    assert chart.legend[-1].text == "best single network" and all(chart.can_hide)


def test_populations_are_pointed_at_in_both_panels():
    result = evaluate(num_originals=12, apart=True)
    chart = make_chart(plot_population(result.metrics))
    assert len(series_of(chart, "generated")) == 2
    found = result.metrics.population["generated"]
    series = chart.data["series"][series_of(chart, "generated")[0]]
    assert dict(zip(series["fields"], series["rows"][0], strict=True))["copies"] == f"{100 * found.copies:.0f} %"


def test_the_map_of_conditions_names_networks_and_tasks():
    generator = torch.Generator().manual_seed(0)
    numbers = {"seen": 6, "oracle": 4, "generated": 4}
    latents = {name: torch.randn(number, 5, generator=generator) for name, number in numbers.items()}
    sizes = {name: torch.arange(number) % 2 + 1 for name, number in numbers.items()}
    names = {name: [(f"{name} {i}", f"task {i}") for i in range(number)] for name, number in numbers.items()}
    chart = make_chart(plot_condition_map(latents, sizes, names))
    assert [entry.text for entry in chart.legend] == ["1 class", "2 classes"]
    titles = [series["title"] for series in chart.data["series"]]
    assert titles.count("seen, 1 class") == 2 and len(titles) == 8, "seen ones are in both panels"
    rows = {series["title"]: series["rows"] for series in chart.data["series"]}
    assert rows["generated for unseen tasks, 2 classes"] == [("generated 1", "task 1"), ("generated 3", "task 3")]


@pytest.mark.parametrize("marker", ["o", "*", "$G$", "D", "8", ">"])
def test_outlines_of_markers_are_paths_about_one_wide(marker):
    path = outline(marker)
    assert re.fullmatch(r"[MLQCZ][\d .eMLQCZ+-]*", path)
    numbers = [float(value) for value in re.findall(r"-?\d*\.?\d+(?:e-?\d+)?", path)]
    assert max(map(abs, numbers)) <= 1.1
