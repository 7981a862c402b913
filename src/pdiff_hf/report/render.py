"""`report.html`: one file that needs nothing else, for light and dark, desks and phones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..results.metrics import AVERAGES
from ..results.text import ReportTable, Section, markdown_table, name_examples, percent, points, sign
from .plots.style import COLORS, STYLES, Plot

# What a finding is called in large type, and the colour of the page's head.
HEADLINES = {
    "copying": ("The generator copies its originals", "vermillion"),
    "worse": ("Worse than the originals", "vermillion"),
    "no_gain": ("No gain over the originals", "orange"),
    "averaging": ("No better than averaging", "orange"),
    "better": ("Better than the originals and their averages", "green"),
    "none": ("No generated networks", "grey"),
}
# Of a difference that is better, not distinguishable, worse.
TONES = {1: "green", 0: "muted", -1: "vermillion"}


@dataclass
class Tile:
    """A key number: its name, the number with its unit, and what it is to be seen with."""

    name: str
    value: str
    unit: str
    note: str


def make_html(metrics: Mapping, sections: Sequence[Section], plots: Sequence[Plot]) -> str:
    """Write the text of `report.html`.

    Everything is inside: styles, and figures as SVG, drawn for desks and for phones, in colours that follow
    `prefers-color-scheme`. There are no scripts.

    Args:
        metrics (`Mapping`): Content of `metrics.json`.
        sections (`Sequence[Section]`): Of [`make_sections`]; the first is shown under the key numbers.
        plots (`Sequence[Plot]`): Figures.
    """
    # A sandbox is not needed: the template is ours, and what comes from outside is escaped.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"bars": _bars, "tied": lambda text: text.replace(" %", "\u00a0%")}
    template = environment.from_string(
        (resources.files("pdiff_hf.report") / "report.html.j2").read_text(encoding="utf-8")
    )
    headline, tone = HEADLINES.get(metrics.get("finding"), ("Evaluation", "grey"))
    return template.render(
        metrics=metrics,
        kicker=_kicker(metrics),
        headline=headline,
        tone=tone,
        tiles=_tiles(metrics),
        sections=sections,
        figures={plot.name: (plot, {width: Markup(svg) for width, svg in plot.svgs().items()}) for plot in plots},
        colors=COLORS,
        group_colors={name: STYLES.get(name, ("ink",))[0] for name in metrics["groups"]},
        settings=_settings(metrics),
    )


def _kicker(metrics: Mapping) -> str:
    dataset = (metrics.get("task") or {}).get("dataset")
    parts = ["pdiff evaluation"]
    if dataset:
        # Of a folder the name is enough.
        parts.append(Path(dataset).name if Path(dataset).is_absolute() else dataset)
    parts += [
        f"{metrics['num_parameters']:,} generated parameters",
        name_examples(f"{metrics['num_test']:,} test images", metrics.get("task")),
    ]
    parts += [f"seeds {', '.join(map(str, metrics['seeds']))}"] if "seeds" in metrics else []
    return " · ".join(parts)


def _tiles(metrics: Mapping) -> list[Tile]:
    groups, comparisons = metrics["groups"], metrics.get("comparisons", {})
    if "generated" not in groups:
        return []
    group = groups["generated"]
    accuracy, original = group["test_accuracy"], groups["original"]["test_accuracy"]
    tiles = [
        Tile(
            "Generated, mean accuracy",
            percent(accuracy["mean"], unit=""),
            "%",
            "" if accuracy["ci95"] is None else f"95 % interval {_range(accuracy['ci95'])}",
        )
    ]
    if "original" in comparisons:
        tiles.append(_difference_tile("Against the originals", comparisons["original"], percent(original["mean"])))
    averages = [name for name in AVERAGES if name in comparisons]
    if averages:
        # The average that is hardest to beat.
        name = min(averages, key=lambda name: (sign(comparisons[name]), comparisons[name]["difference"]))
        mean = groups[name]["test_accuracy"]["mean"]
        tiles.append(_difference_tile(f"Against {AVERAGES[name]}", comparisons[name], percent(mean)))
    scores = group["novel_and_performant"]
    interval = (scores.get("ci95") or {}).get("joint", {}).get("1x")
    if groups["original"]["similarity"]["l2_nearest_mean"] is not None:
        tiles.append(
            Tile(
                "Novel and performant",
                percent(scores["joint"]["1x"], digits=0, unit=""),
                "%",
                f"95 % interval {_range(interval, 0)}" if interval else "of the generated networks",
            )
        )
    seconds = (group.get("cost") or {}).get("seconds")
    if seconds is not None:
        note = "for training and drawing"
        if "fine_tuned" in comparisons:
            note += f"; {points(comparisons['fine_tuned']['difference'])} points against fine-tuning as long"
        tiles.append(Tile("Cost of the generator", f"{seconds:.0f}", "s", note))
    return tiles


def _difference_tile(name: str, comparison: Mapping, other: str) -> Tile:
    low, high = (points(bound) for bound in comparison["ci95"])
    return Tile(name, points(comparison["difference"]), "points", f"95 % interval {low} to {high}; they reach {other}")


def _range(interval: Sequence[float], digits: int = 2) -> str:
    return f"{100 * interval[0]:.{digits}f}–{100 * interval[1]:.{digits}f} %"


def _settings(metrics: Mapping) -> list[tuple[str, str]]:
    """What the numbers belong to, as pairs of a name and its value."""
    task = {key: value for key, value in (metrics.get("task") or {}).items() if value not in (None, [], {})}
    pairs = [(f"task {key.replace('_', ' ')}", value) for key, value in task.items()]
    pairs += [(key, metrics[key]) for key in ("seed", "seeds") if key in metrics]
    pairs += metrics.get("versions", {}).items()
    return [(key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)) for key, value in pairs]


def _bars(table: ReportTable) -> list[dict | None]:
    """Places of the table's intervals on a common axis from 0 to 100, with zero at 50; empty without intervals.

    The axis holds three times the median reach of an interval, so that one hopeless group does not squeeze all others.
    """
    known = [bar for bar in table.intervals if bar is not None]
    if not known:
        return []
    reach = sorted(max(abs(value) for value in bar) for bar in known)
    limit = min(reach[-1], 3 * reach[len(reach) // 2]) or 1.0
    bars: list[dict | None] = []
    for bar in table.intervals:
        if bar is None:
            bars.append(None)
            continue
        center, low, high = (round(50 + 48 * max(-1.0, min(1.0, value / limit)), 2) for value in bar)
        outside = "" if abs(bar[0]) <= limit else "◂" if bar[0] < 0 else "▸"
        tone = TONES[sign({"ci95": bar[1:]})]
        bars.append({"center": center, "low": low, "width": round(high - low, 2), "outside": outside, "tone": tone})
    return bars


def make_markdown(metrics: Mapping, sections: Sequence[Section], plots: Sequence[Plot]) -> str:
    """Write the text of `report.md`.

    Args:
        metrics (`Mapping`): Content of `metrics.json`.
        sections (`Sequence[Section]`): Of [`make_sections`].
        plots (`Sequence[Plot]`): Figures, whose PNGs lie beside it.
    """
    figures = {plot.name: plot for plot in plots}
    lines = ["# Evaluation", "", f"**{metrics['verdict']}**", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for text in section.text:
            lines += [f"- {text}"] if section.bullets else [text, ""]
        for table in section.tables:
            lines += [*markdown_table(table), ""]
        for name in section.plots:
            plot = figures[name]
            lines += [f"![{plot.alt}]({name}.png)", "", f"{plot.note}", ""]
        if section.bullets:
            lines.append("")
    for name in ("seeds", "seed"):
        if name in metrics:
            lines += [f"{name.capitalize()}: {_list(metrics[name])}", ""]
    lines += ["Versions: " + ", ".join(f"{name} {value}" for name, value in metrics["versions"].items()), ""]
    return "\n".join(lines)


def _list(value) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
