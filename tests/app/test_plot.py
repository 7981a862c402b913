import math
from xml.etree import ElementTree

from pdiff_hf.app.plot import PlotData, draw_svg, nice_ticks, plot_data, spread

SVG = "{http://www.w3.org/2000/svg}"
DATA = PlotData(
    [(0.5, 0.9), (0.6, 0.95), (math.nan, 0.5)], [(0.4, 0.8)], [("soup <x>", 0.7, 0.7)], "x", "accuracy", True
)


def parse(text):
    """What browsers are lenient about has to be right, too."""
    return ElementTree.fromstring(f'<div xmlns="{SVG[1:-1]}">{text}</div>')


def circles(root, name):
    return [each for each in root.iter(f"{SVG}circle") if name in each.get("class")]


def test_points_lie_where_their_numbers_say():
    root = parse(draw_svg(DATA, 1))
    (low, high), (grey,) = circles(root, "pd-network"), circles(root, "pd-original")
    assert float(low.get("cx")) < float(high.get("cx")) and float(low.get("cy")) > float(high.get("cy"))
    assert float(grey.get("cx")) < float(low.get("cx")) and float(grey.get("cy")) > float(low.get("cy"))
    # One that has no place is left out, and the others keep their numbers.
    assert [point.get("data-network") for point in (low, high)] == ["0", "1"]
    assert [point.get("aria-selected") for point in (low, high)] == ["false", "true"]
    assert [point.get("tabindex") for point in (low, high)] == ["-1", "0"]
    assert high.get("aria-label") == "network 1: accuracy 95.0%, similarity 0.600"


def test_names_are_escaped_and_the_legend_has_means():
    text = draw_svg(DATA)
    assert "<x>" not in text and "soup &lt;x&gt;, 70.0%" in text and "1 originals, mean 80.0%" in text


def test_nothing_to_show_is_said():
    assert "Generate networks" in draw_svg(PlotData([], [], [], "x", "y", False))


def test_networks_at_one_place_are_spread_so_that_each_can_be_hit():
    found = spread([(5.0, 5.0)] * 40 + [(90.0, 5.0)])
    assert found[0] == (5.0, 5.0) and found[-1] == (90.0, 5.0) and len(set(found)) == 41
    assert max(math.dist((5, 5), place) for place in found[:-1]) < 15


def test_ticks_are_round_numbers_within():
    assert nice_ticks(0.912, 0.968) == [0.92, 0.94, 0.96]
    assert nice_ticks(-3, 12) == [0, 5, 10]


def test_the_plot_of_a_run_has_its_originals_and_marks(lab, drawn):
    before, after = plot_data(lab, None), plot_data(lab, drawn)
    assert before.generated == [] and len(before.originals) == len(lab.originals().vectors) == len(after.originals)
    assert len(after.generated) == 6 and [name.split()[0].rstrip(":") for name, *_ in after.marks] == [
        "soup",
        "oracle",
    ]
    assert after.x_title.startswith("similarity of mistakes to the nearest original") and after.is_share


def test_without_a_task_originals_are_shown_by_the_same_measures(subsets_lab, ask):
    data = plot_data(subsets_lab, subsets_lab.draw(ask(guidance_scale=0.0)))
    assert (data.y_title, data.is_share) == ("norm of the parameters", False) and data.x_title.startswith("cosine")
    norms = [original[1] for original in data.originals]
    assert min(norms) > 1.5
