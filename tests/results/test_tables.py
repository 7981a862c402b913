import pytest

from golden_files import METRICS
from pdiff_hf.results.metrics import Metrics
from pdiff_hf.results.tables import COMPARISON_COLUMNS, ENSEMBLE_COLUMNS, GROUP_COLUMNS, fold_header, group_table

COLUMNS = [*GROUP_COLUMNS.values(), *COMPARISON_COLUMNS, *ENSEMBLE_COLUMNS]


def test_columns_say_what_they_mean_and_groups_have_no_header_twice():
    assert all(column.meaning.endswith(".") and column.name for column in COLUMNS)
    headers = [column.header for column in GROUP_COLUMNS.values()]
    assert len(set(headers)) == len(headers)


def test_columns_of_which_nothing_is_known_are_left_out():
    metrics = Metrics.from_dict({"groups": {"original": {"n": 2}, "mine": {"n": 3, "spread": 0.5}}})
    table = group_table(metrics, ["networks", "accuracy", "spread"])
    assert table.columns == ("group", "networks", "spread")
    assert table.rows == [("original", "2", "–"), ("mine", "3", "0.50")]


def test_intervals_stand_beside_their_numbers_and_are_drawn_but_for_the_originals():
    metrics = Metrics.from_dict(METRICS)
    table = group_table(metrics, ["difference", "iou_nearest"], bars="difference", plain=["iou_nearest"])
    assert table.columns == ("group", "minus originals, points (95 %)", "IoU to nearest")
    group = METRICS["groups"]["generated"]
    row = next(row for row in table.rows if row[0] == "generated")
    low, high = group["difference_to_original"]["ci95"]
    assert f"({100 * low:+.2f} to {100 * high:+.2f})".replace("-", "−") in row[1]
    assert row[2] == f"{group['similarity']['iou_max_mean']:.3f}"
    assert table.rows[0][1] == "–" and table.intervals[0] is None
    assert table.intervals[table.rows.index(row)] == (group["difference_to_original"]["difference"], low, high)
    assert len(table.meanings) == len(table.columns)


@pytest.mark.parametrize(
    ("header", "width", "lines"),
    [
        ("best on val, % (95 %)", 19, "best on val,\n% (95 %)"),
        ("IoU to nearest", 7, "IoU to\nnearest"),
        ("seconds", 3, "seconds"),
    ],
)
def test_narrow_headers_are_folded_between_words(header, width, lines):
    assert fold_header(header, width) == lines
