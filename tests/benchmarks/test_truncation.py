from truncation import TRUNCATIONS, Figures, draw_curves


def test_curves_have_a_point_for_every_truncation_in_units_of_the_originals():
    found = {"originals": Figures(95.0, 1.0, 0.5, 2.0)}
    found |= {f"{t:g}": Figures(96.0 - t, t, 0.5, 2 * t) for t in TRUNCATIONS}
    (axes,) = draw_curves({"one": found, "other": found}).axes
    curves = [line for line in axes.lines if len(line.get_xdata()) == len(TRUNCATIONS)]
    assert len(curves) == 2
    assert list(curves[0].get_xdata()) == list(TRUNCATIONS)
    assert [round(gain, 6) for gain in curves[0].get_ydata()] == [round(1 - t, 6) for t in TRUNCATIONS]
