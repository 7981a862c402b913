"""Forms of a report: Markdown, and one page that needs nothing else, for light and dark, desks and phones."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..evaluation.groups import find_group
from ..results.metric import Metric
from ..results.metrics import Metrics
from ..results.tasks import TaskResults
from ..results.text import ReportTable, Section, markdown_table, number, percent, points, sign
from .charts import fill_of, make_chart
from .plots.style import COLORS, Plot
from .sections import examples_text

# The template, and what it is filled with.
PAGE_FILES = ("report.html.j2", "report.css", "report.js")

# What a finding is called in large type, and the colour of the page's head.
HEADLINES = {
    "copying": ("The generator copies its originals", "vermillion"),
    "worse": ("Worse than the originals", "vermillion"),
    "no_gain": ("No gain over the originals", "orange"),
    "averaging": ("No better than averaging", "orange"),
    "better": ("Better than the originals and their averages", "green"),
    "collapsed": ("Collapsed towards one function", "vermillion"),
    "less_diverse": ("Less diverse than the originals", "orange"),
    "more_diverse": ("More diverse than the originals", "orange"),
    "equal_population": ("A population equal to held-out originals", "green"),
    "unseen_worse": ("No better than weights of seen networks", "vermillion"),
    "unseen_no_gain": ("No better than regression in the same latents", "orange"),
    "unseen_space": ("As good as regression in the same latents", "orange"),
    "unseen_better": ("Better than regression from the condition", "green"),
    "none": ("No generated networks", "grey"),
}
# Of a difference that is better, not distinguishable, worse.
TONES = {1: "green", 0: "muted", -1: "vermillion"}


class Tile(NamedTuple):
    """A key number: its name, the number with its unit, and what it is to be seen with."""

    name: str
    value: str
    unit: str
    note: str


def make_html(metrics: Metrics, sections: Sequence[Section], plots: Sequence[Plot]) -> str:
    """Write the text of `report.html`, with the first section under the key numbers.

    Everything is inside: styles, figures as SVG, drawn for desks and for phones, in colours that follow
    `prefers-color-scheme`, and one script, which says what points are, hides groups and sorts tables. Its hash is in
    the page's policy, which allows no other script and nothing from elsewhere; without it all can be read.
    """
    # A sandbox is not needed: the template is ours, and what comes from outside is escaped.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"bars": _bars, "fill": fill_of, "tied": lambda text: text.replace(" %", "\u00a0%")}
    texts = {name: (resources.files("pdiff_hf.report") / name).read_text(encoding="utf-8") for name in PAGE_FILES}
    template, style, script = map(texts.__getitem__, PAGE_FILES)
    template = environment.from_string(template)
    headline, tone = HEADLINES.get(metrics.finding, ("Evaluation", "grey"))
    return template.render(
        metrics=metrics,
        kicker=_kicker(metrics),
        headline=headline,
        tone=tone,
        tiles=_tiles(metrics),
        sections=sections,
        charts={plot.name: make_chart(plot) for plot in plots},
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        colors=COLORS,
        group_colors={name: group.color or find_group(name).color for name, group in metrics.groups.items()},
        settings=_settings(metrics),
    )


def _kicker(metrics: Metrics) -> str:
    parts = ["pdiff evaluation"]
    if dataset := metrics.task.get("dataset"):
        # Of a folder the name is enough.
        parts.append(Path(dataset).name if Path(dataset).is_absolute() else dataset)
    parts += [f"{metrics.num_parameters:,} generated parameters", examples_text(metrics)]
    parts += [] if metrics.seeds is None else [f"seeds {', '.join(map(str, metrics.seeds))}"]
    return " · ".join(parts)


def _tiles(metrics: Metrics) -> list[Tile]:
    if metrics.tasks is not None:
        return _task_tiles(metrics.tasks)
    if "generated" not in metrics.groups:
        return []
    group, comparisons = metrics.generated, metrics.comparisons
    metric, score = metrics.metric, group.score
    # Accuracies have a unit of their own, which a tile writes smaller.
    units = ("%", "points") if metric.is_accuracy else ("", "")
    note = "" if score.ci95 is None else f"95 % interval {_score_range(score.ci95, metric)}"
    note += "" if metric.is_accuracy else f"; {metric.direction}"
    tiles = [Tile(f"Generated, mean {metric.name}", metric.write(score.mean).removesuffix(" %"), units[0], note)]
    against = {"original": "the originals"} if "original" in comparisons else {}
    if name := metrics.hardest_average():
        against[name] = metrics.groups[name].description
    for name, text in against.items():
        low, high = map(metric.write_difference, comparisons[name].ci95)
        note = f"95 % interval {low} to {high}; they reach {metric.write(metrics.groups[name].score.mean)}"
        tiles.append(Tile(f"Against {text}", metric.write_difference(comparisons[name].difference), units[1], note))
    shares = group.novel_and_performant
    if found := metrics.population.get("generated"):
        if found.disagreement_ratio is not None:
            note = "disagreement of two networks, over that of two held-out originals"
            tiles.append(Tile("Diversity", f"{found.disagreement_ratio:.2f}", "", note))
        if found.copies is not None:
            note = "as functions; near " + ", side ".join(number(value, ".2f") for value in (found.near, found.side))
            tiles.append(Tile("Copies of networks seen", percent(found.copies, digits=0, unit=""), "%", note))
    elif metrics.yardstick is not None:
        interval = shares.ci95.joint.get("1x")
        note = f"95 % interval {_range(interval, 0)}" if interval else "of the generated networks"
        tiles.append(Tile("Novel and performant", percent(shares.joint["1x"], digits=0, unit=""), "%", note))
    if group.cost.seconds is not None:
        note = "for training and drawing"
        for name, rival in metrics.rivals().items():
            if rival.role == "rival":
                difference = metric.write_difference(comparisons[name].difference)
                note += f"; {difference} {units[1]}".rstrip() + f" against {rival.description}"
        tiles.append(Tile("Cost of the generator", f"{group.cost.seconds:.0f}", "s", note))
    return tiles


def _task_tiles(tasks: TaskResults) -> list[Tile]:
    groups = tasks.unseen
    generated, oracle = groups["generated"], groups["oracle"]
    note = f"{tasks.num_unseen:g} tasks" + (f"; 95 % interval {_range(generated.ci95)}" if generated.ci95 else "")
    tiles = [Tile("Generated, unseen tasks", percent(generated.accuracy, unit=""), "%", note)]
    if generated.recovered is not None:
        note = f"of what training on the task has over guessing; trained {percent(oracle.accuracy)}"
        tiles.append(Tile("Recovered", f"{generated.recovered:.3f}", "", note))
    for role, name in (("weights", "what is made of weights"), ("latents", "regression in the same latents")):
        rivals = {key: group for key, group in tasks.of_role(role).items() if key != "reconstructed"}
        best = max(rivals, key=lambda key: rivals[key].accuracy, default=None)
        if best is not None:
            difference, interval = rivals[best].difference, rivals[best].difference_ci95
            note = f"{best.replace('_', ' ')}" + (
                "" if interval is None else f"; 95 % {points(interval[0])} to {points(interval[1])}"
            )
            tiles.append(Tile(f"Against {name}", points(difference), "points", note))
    if generated.seconds and oracle.seconds:
        note = f"{oracle.seconds:.2g} s to train one, {generated.seconds:.2g} s to draw one"
        tiles.append(Tile("Faster than training", f"{oracle.seconds / generated.seconds:,.0f}", "times", note))
    return tiles


def _range(interval: Sequence[float], digits: int = 2) -> str:
    return f"{100 * interval[0]:.{digits}f}–{100 * interval[1]:.{digits}f} %"


def _score_range(interval: Sequence[float], metric: Metric) -> str:
    return _range(interval) if metric.is_accuracy else "–".join(map(metric.write, interval))


def _settings(metrics: Metrics) -> list[tuple[str, str]]:
    """What the numbers belong to, as pairs of a name and its value."""
    settings = {f"task {key.replace('_', ' ')}": value for key, value in metrics.task.items()}
    settings |= {"seed": metrics.seed, "seeds": metrics.seeds, **metrics.versions}
    return [(key, _list(value)) for key, value in settings.items() if value not in (None, [], {})]


def _bars(table: ReportTable, higher_is_better: bool = True) -> list[dict | None]:
    """Places of the table's intervals on a common axis from 0 to 100, with zero at 50; empty without intervals.

    The axis holds three times the median reach of an interval, so that one hopeless group does not squeeze all others.
    """
    reach = sorted(max(map(abs, bar)) for bar in table.intervals if bar is not None)
    if not reach:
        return []
    limit = min(reach[-1], 3 * reach[len(reach) // 2]) or 1.0
    bars: list[dict | None] = []
    for bar in table.intervals:
        if bar is None:
            bars.append(None)
            continue
        center, low, high = (round(50 + 48 * max(-1.0, min(1.0, value / limit)), 2) for value in bar)
        outside = "" if abs(bar[0]) <= limit else "◂" if bar[0] < 0 else "▸"
        tone = TONES[sign(bar[1:]) * (1 if higher_is_better else -1)]
        bars.append({"center": center, "low": low, "width": round(high - low, 2), "outside": outside, "tone": tone})
    return bars


def make_markdown(metrics: Metrics, sections: Sequence[Section], plots: Sequence[Plot]) -> str:
    """Write the text of `report.md`; the PNGs of the figures lie beside it."""
    lines = ["# Evaluation", "", f"**{metrics.verdict}**", "", *markdown_sections(sections, plots)]
    lines += [] if metrics.seeds is None else [f"Seeds: {_list(metrics.seeds)}", ""]
    lines += [] if metrics.seed is None else [f"Seed: {metrics.seed}", ""]
    lines += ["Versions: " + ", ".join(f"{name} {value}" for name, value in metrics.versions.items()), ""]
    return "\n".join(lines)


def markdown_sections(sections: Sequence[Section], plots: Sequence[Plot]) -> list[str]:
    """The lines of sections; the PNGs of their figures lie beside them."""
    figures, lines = {plot.name: plot for plot in plots}, []
    for section in sections:
        lines += [f"## {section.title}", ""]
        for text in section.text:
            lines += [f"- {text}"] if section.bullets else [text, ""]
        if section.bullets:
            lines.append("")
        for table in section.tables:
            lines += [*markdown_table(table), ""]
        for plot in map(figures.__getitem__, section.plots):
            lines += [f"![{plot.alt}]({plot.name}.png)", "", plot.note, ""]
    return lines


def _list(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
