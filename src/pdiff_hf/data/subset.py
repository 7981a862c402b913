"""Smaller parameter datasets out of larger ones."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..files import read_json
from .dataset import dataset_vectors, load_base_model, load_parameter_dataset, save_parameter_dataset


def copy_first_rows(path: str | Path, output_dir: str | Path, num_rows: int) -> None:
    """Write the first rows of a parameter dataset as a new one, with its base model, metrics and metadata.

    The folder gets its name when it is complete.

    Args:
        path (`str` or `Path`): The dataset to copy from.
        output_dir (`str` or `Path`): New folder.
        num_rows (`int`): How many rows.

    Raises:
        ValueError: the dataset is missing or damaged or has fewer rows, or `output_dir` holds a dataset.
    """
    dataset, layout = load_parameter_dataset(path)
    if not 1 <= num_rows <= len(dataset):
        raise ValueError(f"expected 1 to {len(dataset)} rows of {path}, found {num_rows}; collect more checkpoints.")
    if Path(output_dir).exists():
        raise ValueError(f"{output_dir} exists already; choose another folder.")
    first = dataset.select(range(num_rows))
    columns = first.remove_columns("parameters").with_format(None)[:]
    partial = Path(output_dir).with_name(f".{Path(output_dir).name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    metadata = read_json(Path(path) / "stats.json")["metadata"]
    save_parameter_dataset(
        dataset_vectors(first, layout),
        layout,
        partial,
        load_base_model(path),
        columns,
        {**metadata, "first_rows": num_rows},
    )
    partial.rename(output_dir)
