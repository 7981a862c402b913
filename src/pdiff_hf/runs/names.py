"""What the networks of a run are called in its report."""

from __future__ import annotations

from pathlib import Path

from ..data.dataset import ParameterDataset
from ..pipelines.network_folder import read_index


def row_names(dataset: ParameterDataset) -> list[str]:
    """Of every row its number, the run that it is of, and when it was taken, where that is known."""
    order = dataset.order
    return [
        f"row {number}, {run}" + ("" if run in order.unordered else f", step {step}")
        for number, (run, (_, step)) in enumerate(zip(order.runs, order.times, strict=True))
    ]


def network_names(dataset: ParameterDataset, generated_dir: Path) -> dict[str, list[str]]:
    """Of originals [`row_names`], and the files of generated networks."""
    return {"original": row_names(dataset), "generated": read_index(generated_dir)["files"]}
