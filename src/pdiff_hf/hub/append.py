"""New runs behind those of a parameter dataset on the Hub, which is neither downloaded nor rewritten."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from ..data.shards import (
    append_shards,
    arrow_schema,
    check_shard,
    metric_names,
    read_rows,
    recorded_runs,
    shards,
    with_columns,
)
from ..data.stats import compute_stats, merge_stats
from ..files import read_json, write_json
from ..layout import ParameterLayout
from .dataset_card import write_dataset_card
from .download import check_config
from .errors import hub_errors
from .push import (
    check_same_layout,
    dataset_files,
    make_api,
    publish_stats,
    push_files,
    read_remote,
    repo_head,
    write_configs_card,
)

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
