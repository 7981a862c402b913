"""`report.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .document import ReportTable, Section
from .plots.style import Plot


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


def markdown_table(table: ReportTable) -> list[str]:
    """The lines of a table, its title first."""
    return [
        f"**{table.title}**",
        "",
        "| " + " | ".join(table.columns) + " |",
        "|" + " --- |" + " ---: |" * (len(table.columns) - 1),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows),
    ]


def _list(value) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
