"""The card of a parameter dataset: what is in it, how to read it, how its checkpoints were made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData

from ..conditions import conditions_text
from ..files import read_json
from ..hub.card_text import REPO_ID, code, escape, fold, literal, make_table, template, write_card
from ..results import card_lines
from .integrity import some_shards

COLUMNS = {
    "parameters": "all values of a checkpoint, in the order of the layout",
    "run": "name of the training run",
    "seed": "seed of that run",
    "step": "position within it",
    "epoch": "the same in epochs",
    "population": "of which of several populations, see `metadata.populations` in `stats.json`; to judge by only",
    "task": "what the network was trained for, by name",
    "condition": "what the network was trained for, as numbers that `condition.json` explains",
    "condition_text": "the same as a sentence",
    "chunk": "position of the values among those of the checkpoint",
    "values": "values of a part of a checkpoint, in the order of the layout",
}
# Settings of sections of the metadata that are told in words.
OPTIMISER = {"learning_rate": "learning rate", "weight_decay": "weight decay", "train_batch_size": "batch size"}
COLLECTION = {"num_checkpoints": "checkpoints of a run", "every": "every n-th step, n ="}
SETTINGS = {
    "base_training": ("Base training", {"epochs": "epochs", **OPTIMISER, "seed": "seed"}),
    "collect": ("Collection", {**COLLECTION, **OPTIMISER, "select": "selection"}),
    "import": ("Import", {"select": "selection"}),
}
# Rows of a table that are seen without a click, and rows at all of a table of sources.
MAX_SEEN = 24
MAX_SOURCES = 200


def write_dataset_card(dataset_dir: str | Path) -> Path:
    """Write `README.md` of a parameter dataset; what a person wrote into an earlier one is kept, see [`update_card`].

    Raises:
        ValueError: a file is missing or damaged, or the metadata of the card that is there are malformed.
    """
    dataset_dir = Path(dataset_dir)
    layout, stats = read_json(dataset_dir / "layout.json"), read_json(dataset_dir / "stats.json")
    schema = pq.read_schema(some_shards(dataset_dir)[0])
    base_model, metadata = layout["base_model"], stats["metadata"]
    _, images = card_lines.task_dataset(metadata.get("task"))
    data = DatasetCardData(
        size_categories=[size_category(stats["num_rows"])],
        tags=["pdiff-hf", "parameter-dataset", "model-weights"],
        source_datasets=None if images is None else [images],
        configs=[{"config_name": "default", "data_files": "data/train-*.parquet"}],
    )
    card = DatasetCard.from_template(
        data,
        template_str=template("dataset_card.md"),
        title=escape(f"Checkpoints of {card_lines.short_name(base_model)}"),
        repo_id=REPO_ID,
        num_rows=f"{stats['num_rows']:,}",
        runs=_runs_text(stats["runs"]),
        base_text=card_lines.base_model_text(base_model),
        num_parameters=f"{layout['num_parameters']:,}",
        tensors=card_lines.tensors_text(layout),
        build_arguments=card_lines.build_arguments(base_model) if base_model else None,
        fingerprint=code(layout["fingerprint"]),
        is_chunked="chunk" in schema.names,
        schema=_schema_table(schema),
        conditions=_conditions(stats.get("conditions")),
        layout=_layout_table(layout),
        making=_making_lines(metadata),
        config=_config(metadata),
        sources=_sources(metadata),
        distribution=_distribution(stats["columns"]),
    )
    write_card(dataset_dir / "README.md", f"{card.content}\n")
    return dataset_dir / "README.md"


def size_category(num_rows: int) -> str:
    """The Hub's name for a number of rows."""
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    power = 0 if num_rows < 1000 else int(math.log10(num_rows)) - 2
    return "n<1K" if power == 0 else f"{names[power - 1]}<n<{names[power]}"


def _runs_text(runs: list[str]) -> str:
    shown = ", ".join(code(run) for run in runs[:MAX_SEEN])
    more = f" and {len(runs) - MAX_SEEN} more" if len(runs) > MAX_SEEN else ""
    return f"{'1 run' if len(runs) == 1 else f'{len(runs)} runs'} ({shown}{more})"


def _schema_table(schema: pa.Schema) -> str:
    rows = []
    for field in schema:
        is_list = pa.types.is_fixed_size_list(field.type)
        kind = f"list of {field.type.list_size:,} {field.type.value_type}" if is_list else str(field.type)
        rows.append((code(field.name), escape(kind), COLUMNS.get(field.name, "metric, null where it is not known")))
    return make_table(("column", "type", "what"), rows, align="---")


def _conditions(described: Mapping | None) -> str | None:
    if described is None:
        return None
    example = code(f"{described['example']!s:.120}")
    return f"Conditions are {escape(conditions_text(described))}. Example: {example}"


def _layout_table(layout: Mapping) -> str:
    rows = [
        (
            code(tensor["name"]),
            "×".join(map(str, tensor["shape"])) or "scalar",
            code(tensor["dtype"]),
            code(tensor["transform"]),
            f"{tensor['offset']:,}",
        )
        for tensor in layout["tensors"]
    ]
    table = make_table(("tensor", "shape", "dtype", "transform", "offset"), rows)
    return table if len(rows) <= MAX_SEEN else fold(table, f"{len(rows)} tensors")


def _distribution(columns: Mapping) -> str | None:
    keys = ("mean", "std", "min", "max")
    rows = [(code(name), *(f"{values[key]:.4g}" for key in keys)) for name, values in columns.items()]
    return make_table(("metric", *keys), rows) if rows else None


def _making_lines(metadata: Mapping) -> list[str]:
    lines = card_lines.task_lines(metadata.get("task"))
    for name, (title, keys) in SETTINGS.items():
        found = {label: card_lines.find(metadata, name, key) for key, label in keys.items()}
        known = [
            f"{label} {', '.join(map(code, value)) if isinstance(value, list) else escape(value)}"
            for label, value in found.items()
            if value is not None
        ]
        lines += [f"{title}: {', '.join(known)}"] if known else []
    if rows := card_lines.find(metadata, "import", "rows"):
        lines.append(f"{len(rows)} checkpoints that were there before were imported")
    return lines


def _config(metadata: Mapping) -> str | None:
    known = {name: value for name, value in metadata.items() if name != "import"}
    if not known:
        return None
    if card_lines.find(known, "task", "dataset") is not None:
        known["task"] = {**known["task"], "dataset": card_lines.task_dataset(known["task"])[0]}
    return fold(f"```json\n{literal(known, indent=2)}\n```", "All settings")


def _sources(metadata: Mapping) -> str | None:
    rows = card_lines.find(metadata, "import", "rows")
    if not rows:
        return None
    cells = [
        (str(number), *(code(row[key]) if row.get(key) else "" for key in ("source", "revision")))
        for number, row in enumerate(rows[:MAX_SOURCES])
    ]
    more = f"\n\n{len(rows) - MAX_SOURCES} more are in `stats.json`." if len(rows) > MAX_SOURCES else ""
    table = make_table(("row", "source", "revision"), cells, align="---")
    return fold(table + more, "Where each row comes from")
