import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from pdiff_hf.evaluation.summary import aggregate_seeds
from pdiff_hf.report.plots.networks import plot_accuracy_similarity
from pdiff_hf.report.plots.style import COLORS
from pdiff_hf.report.render import HEADLINES, _bars, make_html
from pdiff_hf.report.sections import make_sections
from pdiff_hf.report.write import write_report, write_summary
from pdiff_hf.results.metrics import Metrics
from pdiff_hf.results.text import ReportTable
from small_results import evaluate

VOID = {"meta", "br", "img", "hr", "input", "link"}
HOSTILE = '<script>alert("1")</script>&"\'$x$'


class Page(HTMLParser):
    """All elements with their attributes, texts and scripts; unbalanced tags fail."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts, self.scripts = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), [name for name, _ in self.open]))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), [name for name, _ in self.open]))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"{tag} closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1][0] == "script":
            self.scripts.append((self.open[-1][1], data))
        else:
            self.texts.append(data)

    def all(self, name):
        return [attributes for tag, attributes, _ in self.elements if tag == name]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).replace("\u00a0", " ").split())


@pytest.fixture(scope="module")
def result():
    return evaluate(num_originals=8, num_generated=6)


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    log = folder / "train_log.jsonl"
    log.write_text("".join(json.dumps({"step": s, "loss": 1 / (s + 1)}) + "\n" for s in range(50)))
    latents = {"original": result.iou[:8], "generated": result.iou[8:14]}
    write_report(
        result,
        folder / "report",
        task={"dataset": HOSTILE, "class_names": ["a", HOSTILE]},
        timings_s={HOSTILE: 3.25, "evaluate": 1.0},
        gate={"explained_variance": 0.973, "accuracy_drop": 0.0012},
        logs={"autoencoder": log},
        latents=latents,
        names={"generated": [HOSTILE, *map(str, range(1, 6))]},
    )
    return folder / "report"


@pytest.fixture(scope="module")
def source(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_page_is_self_contained(page, source):
    links = [attributes["href"] for attributes in page.all("a")]
    assert links == ["https://arxiv.org/abs/2402.13144", "https://arxiv.org/abs/2506.07998"]
    assert {"link", "iframe", "object", "img"}.isdisjoint(tag for tag, _, _ in page.elements)
    for tag, attributes, _ in page.elements:
        for name in ("src", "srcset", "href", "xlink:href", "data", "action"):
            if name in attributes and tag != "a":
                assert attributes[name].startswith(("data:image/png;base64,", "#")), (tag, name)
        assert not any(name.startswith("on") for name in attributes)
    scripts = [text for attributes, text in page.scripts if attributes.get("type") != "application/json"]
    assert len(scripts) == 1 and not any(
        word in scripts[0] for word in ("fetch", "import", "innerHTML", "http:", "eval")
    )
    own = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{own}'; ")
    style = source[source.index("<style>") : source.index("</style>")]
    assert "@import" not in style and "url(" not in style
    assert len(source) < 1.5e6


def test_every_figure_has_both_widths_and_its_numbers_in_words(page, result):
    figures = [attributes for tag, attributes, _ in page.elements if attributes.get("role") == "img"]
    assert len(figures) == 6
    for figure in figures:
        assert len(re.findall(r"\d", figure["aria-label"])) >= 4
    svgs = [found[1:] for found in page.elements if found[0] == "svg" and "li" not in found[2]]
    assert len(svgs) == 12
    for attributes, parents in svgs:
        assert attributes["aria-hidden"] == "true" and "figure" in parents
    mean = result.metrics.to_dict()["groups"]["generated"]["test_accuracy"]["mean"]
    assert any(f"generated: {100 * mean:.2f} %" in figure["aria-label"] for figure in figures)
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_both_themes_define_every_color(source):
    light, dark = re.findall(r":root \{([^}]*)\}", source)
    for name, shades in COLORS.items():
        assert f"--{name}: {shades[0]};" in light and f"--{name}: {shades[1]};" in dark
    assert "@media screen and (prefers-color-scheme: dark)" in source
    used = set(re.findall(r"var\(--([a-z]+)\)", source))
    assert used <= {*COLORS, "page", "tone"}


def test_what_comes_from_users_is_escaped(page, source):
    assert HOSTILE in page.text
    assert HOSTILE not in source and source.count("<script") == len(page.scripts) == 4
    assert "class names" in page.text and f"a, {HOSTILE}" in page.text


def test_hostile_group_names_are_escaped_in_tables_and_figures(result):
    metrics = result.metrics.to_dict()
    metrics["groups"][HOSTILE] = metrics["groups"].pop("swag")
    metrics["comparisons"][HOSTILE] = metrics["comparisons"].pop("swag")
    metrics = Metrics.from_dict(metrics)
    plot = plot_accuracy_similarity(metrics)
    source = make_html(metrics, make_sections(metrics, None, [plot.name]), [plot])
    assert source.count("<script") == len(Page(source).scripts) == 2
    # Group column of five tables, and the legend of the figure.
    assert Page(source).text.count(HOSTILE) >= 6
    series = json.loads(Page(source).scripts[0][1])["series"]
    assert [found["title"] for found in series].count(HOSTILE) == 1


def test_verdict_and_key_numbers_come_first(page, result):
    metrics = result.metrics.to_dict()
    headline, _ = HEADLINES[metrics["finding"]]
    start = page.text.index(f"{headline} {metrics['verdict']}") + len(f"{headline} {metrics['verdict']}")
    top = page.text[start : page.text.index("Are they good?")]
    gain, group = metrics["comparisons"]["original"], metrics["groups"]["generated"]
    expected = [
        f"{100 * group['test_accuracy']['mean']:.2f} %",
        f"{100 * gain['difference']:+.2f} points".replace("-", "−"),
        f"{100 * group['novel_and_performant']['joint']['1x']:.0f} %",
        "3 s",
    ]
    places = [top.index(text) for text in expected]
    assert places == sorted(places)


def test_every_finding_has_a_headline(result):
    sections = make_sections(result.metrics, None, [])
    for finding, (headline, tone) in HEADLINES.items():
        source = make_html(result.metrics.model_copy(update={"finding": finding}), sections, [])
        assert f"<h1>{headline}</h1>" in source and f"--tone: var(--{tone})" in source
    without = {key: value for key, value in result.metrics.to_dict().items() if key != "finding"}
    assert "<h1>Evaluation</h1>" in make_html(Metrics.from_dict(without), sections, [])


def test_tables_have_scopes_and_can_be_scrolled(page, result):
    tables = [parents for tag, _, parents in page.elements if tag == "table"]
    assert len(tables) >= 6 and all(parents[-1] == "div" for parents in tables)
    regions = [attributes for tag, attributes, _ in page.elements if attributes.get("class") == "scroll"]
    assert len(regions) == len(tables) and all(a["tabindex"] == "0" and a["aria-label"] for a in regions)
    assert {attributes["scope"] for attributes in page.all("th")} == {"row", "col"}
    for name, group in result.metrics.to_dict()["groups"].items():
        low, high = group["test_accuracy"]["ci95"]
        mean = group["test_accuracy"]["mean"]
        assert f"{100 * mean:.2f} ({100 * low:.2f}–{100 * high:.2f})" in page.text, name


def test_intervals_are_drawn_on_a_common_axis(result):
    source = make_html(result.metrics, make_sections(result.metrics, None, []), [])
    bars = [(float(a), float(b)) for a, b in re.findall(r'<i style="left: ([\d.]+)%; width: ([\d.]+)%">', source)]
    assert len(bars) >= len(result.groups) - 1
    assert all(0 <= left and left + width <= 100 for left, width in bars)
    widths = [width for _, width in bars]
    ratio = [c["ci95"][1] - c["ci95"][0] for c in result.metrics.to_dict()["comparisons"].values()][:2]
    # The second table of bars is that of the comparisons, in the same order.
    ours = widths[-len(result.metrics.to_dict()["comparisons"]) :][:2]
    assert ours[0] / ours[1] == pytest.approx(ratio[0] / ratio[1], rel=0.02)


def test_bars_say_which_side_is_better():
    table = ReportTable(("group",), [("a",), ("b",), ("c",)], "", [(1.0, 0.5, 1.5), (-1.0, -1.5, -0.5), (0.0, -1, 1)])
    assert [bar["tone"] for bar in _bars(table)] == ["green", "vermillion", "muted"]
    assert [bar["tone"] for bar in _bars(table, higher_is_better=False)] == ["vermillion", "green", "muted"]


def test_old_and_small_results_are_written(result):
    """What a caller of `evaluate_groups` does not have is left out, not invented."""
    metrics = result.metrics.to_dict()
    for key in ("ensembles", "selected_comparisons", "finding", "seed"):
        metrics.pop(key)
    for group in metrics["groups"].values():
        for key in ("cost", "spread"):
            group.pop(key)
        group["novel_and_performant"].pop("ci95")
        group["novel_and_performant"].pop("copied")
        group["similarity"].pop("ci95")
        group["similarity"].pop("cosine_nearest_mean")
        group["test_nll"].pop("ci95")
    old = Metrics.from_dict(metrics)
    text = Page(make_html(old, make_sections(old, None, []), [])).text
    for word in ("Ensembles", "McNemar", "Gain per second", "cosine", "spread", "nan", "None"):
        assert word not in text
    metrics["groups"] = {"original": metrics["groups"]["original"]}
    metrics["comparisons"] = {}
    small = Metrics.from_dict(metrics)
    Page(make_html(small, make_sections(small, None, []), []))


def test_seeds_have_a_page_of_the_same_form(result, tmp_path):
    runs = {}
    for seed, shift in ((3, 0.0), (4, 0.01), (5, -0.005)):
        run = {**result.metrics.to_dict(), "versions": {"torch": "2"}, "timings_s": {"collect": 2.0}}
        run["groups"]["generated"]["test_accuracy"]["mean"] += shift
        runs[seed] = Metrics.from_dict(run)
    written = write_summary(aggregate_seeds(runs), tmp_path)
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "seeds 3, 4, 5" in page.text and "Student's t over the seeds" in page.text
    mean = result.metrics.to_dict()["groups"]["generated"]["test_accuracy"]["mean"]
    assert f"{100 * mean:.2f} {100 * mean + 1:.2f} {100 * mean - 0.5:.2f}" in page.text
    assert json.loads((tmp_path / "metrics.json").read_text())["seeds"] == [3, 4, 5]
