import dataclasses

import pytest

from pdiff_hf.report.plots.population import plot_population
from pdiff_hf.report.write import write_report, write_summary
from pdiff_hf.results.population_table import population_lines
from small_results import evaluate


@pytest.fixture(scope="module")
def result():
    return evaluate(num_originals=12, apart=True)


def test_the_report_has_a_row_for_every_group_and_says_what_columns_mean(result, tmp_path):
    write_report(result, tmp_path)
    text, page = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))
    for found in (text, page):
        assert "Is it a population like the originals" in found
        assert "Near: Distance of functions to the nearest network seen" in found
    rows = text.partition("**Populations**")[2].partition("**Tests in function space")[0]
    names = [line.split(" | ")[0].removeprefix("| ") for line in rows.splitlines() if line.startswith("|")][2:]
    assert names == list(result.metrics.population) and "seen_redrawn" in names
    assert "| seen | copies | " in rows and "beside the 4 originals that were held out" in text
    assert (tmp_path / "population.png").stat().st_size > 1000 and "population.png" in text


def test_the_page_is_headed_by_the_finding_and_shows_diversity_and_copies(result, tmp_path):
    metrics = result.metrics.model_copy(deep=True)
    metrics.finding = "equal_population"
    write_report(dataclasses.replace(result, metrics=metrics), tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "A population equal to held-out originals" in page
    assert "Diversity" in page and "Copies of networks seen" in page


def test_the_figure_tells_copies_from_held_out_originals(result):
    plot = plot_population(result.metrics)
    assert "seen: " in plot.alt and "near 0.00, 100 % copies" in plot.alt
    assert "near 1.00, 0 % copies" in plot.alt
    assert set(plot.svgs()) == {"wide", "narrow"}
    assert plot_population(evaluate().metrics) is None, "nothing of one trajectory"


def test_lines_of_cards_set_generated_networks_beside_held_out_and_seen_ones(result):
    lines = population_lines(result.metrics)
    assert [line.partition(":")[0] for line in lines] == ["Held-out originals", "The networks seen", "Generated"]
    assert lines[1].endswith("near 0.00, side 0.00, copies 100 %")
    assert population_lines(evaluate().metrics) == []


def test_a_summary_of_seeds_shows_it_too(result, tmp_path):
    write_summary(result.metrics, tmp_path)
    assert (tmp_path / "population.png").exists()
