import io

import pytest
from rich.console import Console

from pdiff_hf.report.side_by_side import SHOWN, compare_runs
from small_results import evaluate


@pytest.fixture(scope="module")
def runs():
    return {"one run": evaluate().metrics, "independent runs": evaluate(num_originals=12, apart=True).metrics}


def shown(runs, width=120):
    console = Console(width=width, file=io.StringIO())
    console.print(compare_runs(runs))
    return console.file.getvalue()


def rows(text):
    """Cells by run and by the first word of the group."""
    found, run = {}, None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("│")]
        if len(cells) > 1 and not cells[1]:
            run = cells[0]
        elif len(cells) > 1 and run:
            found[run.split(",")[0], cells[0]] = cells[1:]
    return found


def test_groups_of_all_runs_stand_in_one_table_with_their_verdicts(runs):
    text, soup = shown(runs), runs["one run"].groups["uniform_soup"]
    found = rows(text)
    assert len(found) == 2 * len(SHOWN)
    assert found["one run", "uniform soup"][0] == f"{100 * soup.test_accuracy.mean:.2f}"
    said = " ".join(text.split())
    assert all(" ".join(metrics.verdict.split()) in said for metrics in runs.values())


def test_a_population_is_compared_with_originals_that_were_held_out(runs):
    found, population = rows(shown(runs)), runs["independent runs"].population
    accuracy, iou, disagreement, ensemble, copies = found["independent runs", "originals, held out"]
    assert accuracy == f"{100 * population['original'].accuracy:.2f}"
    assert disagreement == f"{100 * population['original'].disagreement:.2f}"
    assert ensemble == f"{100 * population['original'].ensemble:.2f}"
    assert (iou, copies) == (f"{population['original'].iou:.2f}", "0")


def test_of_one_run_all_originals_are_shown_and_disagreement_is_not_known(runs):
    found, metrics = rows(shown(runs)), runs["one run"]
    accuracy, iou, disagreement, ensemble, _ = found["one run", "originals"]
    assert accuracy == f"{100 * metrics.original.test_accuracy.mean:.2f}" and disagreement == "–"
    assert iou == f"{metrics.original.similarity.iou_mean:.2f}"
    assert ensemble == f"{100 * metrics.ensembles['original']['5'].accuracy.mean:.2f}"
