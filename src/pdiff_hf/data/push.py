"""Parameter datasets to the Hub: a whole one, or new runs behind those that are there."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from huggingface_hub import DatasetCard

from ..base_model import BaseModel
from ..files import read_json, write_json
from ..hub.errors import hub_errors
from ..hub.snapshot import without_paths
from ..hub.upload import make_api, push_files, read_remote, repo_head, select_files
from ..layout import ParameterLayout
from .card import write_dataset_card
from .hub import check_config
from .shards import (
    RECORDING,
    append_shards,
    arrow_schema,
    check_shard,
    metric_names,
    read_rows,
    recorded_runs,
    shards,
    with_columns,
)
from .stats import compute_stats, merge_stats

SHARD = re.compile(r"data/train-(\d+)\.parquet")


def append_dataset(
    folder: str | Path,
    repo_id: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Append the runs of a parameter dataset to one on the Hub, whose shards stay as they are.

    Of what is there, `layout.json`, `stats.json`, the card and the footer of one shard are read.

    Args:
        folder (`str` or `Path`): A complete parameter dataset with new runs only.
        repo_id (`str`): `user/name`, a dataset of the same layout and base model.
        config (`str`, *optional*): Name of the dataset among several in the repository.
        revision (`str`, *optional*): A branch.
        token (`str`, *optional*): Instead of that of `hf auth login`.

    Returns:
        `str`: address of the commit.

    Raises:
        ValueError: there is no such dataset, it has another layout or base model, holds one of the runs already or
            lacks one of the metrics, somebody else commits meanwhile, or the Hub refuses; nothing is committed then.
    """
    folder = Path(folder)
    prefix = "" if config is None else f"{check_config(config)}/"
    layout, files = dataset_files(folder)
    with tempfile.TemporaryDirectory() as temporary:
        api = make_api(token)
        with hub_errors(repo_id, revision, writing=True):
            head = repo_head(api, repo_id, "dataset", revision)
            names = ("layout.json", "stats.json", "README.md")
            where = [f"{prefix}{names[0]}", f"{prefix}{names[1]}", names[2]]
            stored = [read_remote(api, head, name, temporary) for name in where]
        found = {} if head is None else {s.rfilename.removeprefix(prefix) for s in head.siblings}
        numbers = {int(match[1]): name for name in found if (match := SHARD.fullmatch(name))}
        if None in stored[:2] or not numbers:
            raise ValueError(f"{repo_id}: expected a parameter dataset to append to, found none; push without append.")
        remote, stats = map(read_json, stored[:2])
        check_same_layout(repo_id, folder, remote, layout)
        if remote["base_model"] != read_json(folder / "layout.json")["base_model"]:
            raise ValueError(
                f"{repo_id}: expected the base model of {folder}, found another or other weights; push it as a config "
                "of its own, or to another repository."
            )
        if known := [run for run in recorded_runs(folder) if run in stats["runs"]]:
            raise ValueError(f"{repo_id} already holds run {known[0]!r}; append runs of other names.")
        shard = f"hf://datasets/{repo_id}@{head.sha}/{prefix}{numbers[max(numbers)]}"
        with hub_errors(repo_id, revision):
            metrics = metric_names(check_shard(shard, layout).names)
        added = [path for name, path in files.items() if SHARD.fullmatch(name)]
        _write_rows(added, layout, metrics, repo_id, Path(temporary) / "new")

        # What describes all rows
        new = Path(temporary) / "new"
        merged = merge_stats(stats, compute_stats(shards(new), layout, metrics), layout)
        own = read_json(publish_stats(folder / "stats.json", new / "own.json"))
        metadata = {**own["metadata"], **stats["metadata"]}
        write_json(new / "stats.json", {"schema": stats["schema"], **merged, "metadata": metadata})
        write_json(new / "layout.json", remote)
        pushed = {f"{prefix}stats.json": new / "stats.json"}
        write_dataset_card(new)
        pushed["README.md"] = write_configs_card(new / "README.md", stored[2], config, new / "card.md")
        for number, file in enumerate(shards(new), max(numbers) + 1):
            pushed[f"{prefix}data/train-{number:05d}.parquet"] = file
        return push_files(pushed, repo_id, "dataset", "runs", False, revision, token, False, parent=head.sha)


def _write_rows(own: list[Path], layout: ParameterLayout, metrics: list[str], repo_id: str, output_dir: Path) -> None:
    """Write rows to shards with the columns of those on the Hub, a row group in memory at a time."""
    for file in own:
        if more := set(metric_names(check_shard(file, layout).names)) - set(metrics):
            raise ValueError(
                f"{repo_id}: expected no metrics but {', '.join(metrics) or 'none'}, found {min(more)!r}; leave it "
                "out, or download the dataset, append to the folder and push that."
            )
    schema = arrow_schema(layout, metrics)

    def batches() -> Iterator[pa.RecordBatch]:
        for file in own:
            for table in read_rows(file, layout):
                yield from with_columns(table, schema).to_batches()

    append_shards(batches(), output_dir)


def push_dataset(
    folder: str | Path,
    repo_id: str,
    *,
    config: str | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    create_pr: bool = False,
) -> str:
    """Push a parameter dataset; shards that the Hub has already are not sent again.

    Args:
        folder (`str` or `Path`): A complete parameter dataset.
        repo_id (`str`): `user/name`; made when it does not exist.
        config (`str`, *optional*): Name of this dataset among several in one repository; it gets a folder of its own.
        private, revision, token, create_pr: See [`push_pipeline`].

    Returns:
        `str`: address of the commit or pull request.

    Raises:
        ValueError: the folder is no complete dataset, the repository holds one of another layout, or the Hub refuses;
            nothing is committed then.
    """
    folder = Path(folder)
    prefix = "" if config is None else f"{check_config(config)}/"
    layout, files = dataset_files(folder)
    files = {f"{prefix}{name}": path for name, path in files.items()}
    with tempfile.TemporaryDirectory() as temporary:
        api = make_api(token)
        with hub_errors(repo_id, revision, writing=True):
            head = repo_head(api, repo_id, "dataset", revision)
            stored = read_remote(api, head, f"{prefix}layout.json", temporary)
            known = read_remote(api, head, "README.md", temporary)
        if stored is not None:
            check_same_layout(repo_id, folder, read_json(stored), layout)
        files.pop(f"{prefix}README.md")
        files["README.md"] = write_configs_card(folder / "README.md", known, config, Path(temporary) / "card.md")
        files[f"{prefix}stats.json"] = publish_stats(folder / "stats.json", Path(temporary) / "stats.json")
        mirror = [f"{prefix}data/train-*.parquet"]
        return push_files(files, repo_id, "dataset", "dataset", private, revision, token, create_pr, mirror)


def check_same_layout(repo_id: str, folder: Path, remote: dict, layout: ParameterLayout) -> None:
    """Raise `ValueError` when a repository's `layout.json` is not of the layout of a folder to be pushed to it."""
    if ParameterLayout.from_dict(remote).fingerprint != layout.fingerprint:
        raise ValueError(
            f"{repo_id}: expected the layout {layout.fingerprint[:12]} of {folder}, found a dataset of another; push "
            "it as a config of its own, or to another repository."
        )


def write_configs_card(own: Path, known: Path | None, config: str | None, output: Path) -> Path:
    """Write the card of a repository of one or several datasets; of several, it is that of the first.

    Args:
        own (`Path`): The card of the dataset that is pushed.
        known (`Path`, *optional*): The card on the Hub.
        config (`str`, *optional*): Name of the dataset that is pushed.
        output (`Path`): Where the card is written.
    """
    prefix, name = ("", "default") if config is None else (f"{config}/", config)
    text = own if known is None or config is None else known
    card = DatasetCard(text.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    others = [] if known is None else DatasetCard(known.read_text(encoding="utf-8")).data.configs or []
    listed = {"config_name": name, "data_files": f"{prefix}data/train-*.parquet"}
    card.data.configs = [*(c for c in others if c["config_name"] != name), listed]
    output.write_text(str(card), encoding="utf-8")
    return output


def publish_stats(file: Path, output: Path) -> Path:
    """Write `stats.json` without paths of this machine."""
    stats = read_json(file)
    if task := stats["metadata"].get("task"):
        stats["metadata"] = {**stats["metadata"], "task": without_paths(task)}
    write_json(output, stats)
    return output


def dataset_files(folder: Path) -> tuple[ParameterLayout, dict[str, Path]]:
    """The layout and the files of a parameter dataset's folder by their names on the Hub.

    Raises:
        ValueError: the folder is no complete dataset.
    """
    if not (folder / "layout.json").is_file():
        raise ValueError(f"expected a parameter dataset at {folder}, found no layout.json there.")
    if (folder / RECORDING).exists():
        raise ValueError(f"{folder} holds a recording that was not closed; call finish_recording first.")
    values = read_json(folder / "layout.json")
    layout = ParameterLayout.from_dict(values)
    if not shards(folder):
        raise ValueError(f"expected Parquet shards {folder / 'data' / 'train-*.parquet'}, found none.")
    for file in shards(folder):
        check_shard(file, layout)
    patterns = ["layout.json", "stats.json", "README.md", "data/train-*.parquet", "*.png"]
    if values["base_model"] is not None:
        patterns += BaseModel.from_dict(values["base_model"], root=folder).carried_files()
    return layout, select_files(folder, patterns)
