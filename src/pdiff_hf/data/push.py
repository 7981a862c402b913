"""Parameter datasets to the Hub: a whole one, or new runs behind those that are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Unpack

from huggingface_hub import DatasetCard

from ..base_model import BaseModel
from ..conditions import CONDITION_FILE
from ..files import check_artefact, errors_of, read_json, temporary_folder, write_json
from ..hub.card_text import split_card
from ..hub.errors import hub_errors
from ..hub.snapshot import without_paths
from ..hub.upload import PushOptions, push_files, read_stored, select_files
from ..identity import EMPTY, NetworkIdentity, check_same_network, read_identity
from ..layout import ParameterLayout
from ..wording import argument
from . import shards
from .card import write_dataset_card
from .columns import arrow_schema, metric_names
from .conditions import check_same_conditions, condition_table, describe_conditions, read_conditions
from .folder import DEFAULT
from .hub import config_prefix
from .integrity import check_all, find_shards, read_stats
from .reading import complete_shards
from .stats import compute_stats, merge_stats
from .writer import finish_interrupted

OTHER_PLACE = "push it as a config of its own, or to another repository"

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

    Of what is there, `layout.json`, `stats.json`, the card, the footer of one shard and the conditions of all rows, if
    they have any, are read; the base model's weights only where they are another file than the folder's and not all of
    it is in the layout.

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
    folder, prefix = Path(folder), config_prefix(config)
    layout, _ = dataset_files(folder)
    with temporary_folder() as temporary:
        names = (f"{prefix}layout.json", f"{prefix}stats.json", "README.md", f"{prefix}{CONDITION_FILE}")
        head, stored = read_stored(repo_id, "dataset", names, temporary, revision, token)
        found = {} if head is None else {s.rfilename.removeprefix(prefix) for s in head.siblings}
        numbers = {int(match[1]): name for name in found if (match := SHARD.fullmatch(name))}
        if None in stored[:2] or not numbers:
            raise ValueError(
                f"{repo_id}: expected a parameter dataset to append to, found none; push without {argument('append')}."
            )
        remote, stats = map(read_json, stored[:2])
        mine, theirs = read_identity(folder), read_identity(stored[0].parent, repo_id)
        base, own_base = theirs.base_model, mine.base_model
        if base and own_base and base.carried_weights and base.sha256 != own_base.sha256 and mine.rest != EMPTY:
            read_stored(repo_id, "dataset", [f"{prefix}{base.weights}"], temporary, revision, token)
        check_same_network(mine, theirs, OTHER_PLACE)
        conditions = read_conditions(stored[0].parent, stats)
        check_same_conditions(repo_id, conditions, read_conditions(folder, read_stats(folder)), OTHER_PLACE)
        if known := [run for run in shards.recorded_runs(folder) if run in stats["runs"]]:
            raise ValueError(f"{repo_id} already holds run {known[0]!r}; append runs of other names.")
        known_shards = [f"hf://datasets/{repo_id}@{head.sha}/{prefix}{numbers[n]}" for n in sorted(numbers)]
        with hub_errors(repo_id, revision):
            metrics = shards.shard_others(known_shards[-1], layout)
        for file in find_shards(folder):
            if more := {*shards.shard_others(file, layout)} - {*metrics}:
                raise ValueError(
                    f"{repo_id}: expected no metrics but {', '.join(metrics) or 'none'}, found {min(more)!r}; leave "
                    "it out, or download the dataset, append to the folder and push that."
                )
        schema, new = arrow_schema(layout, metrics), Path(temporary) / "new"
        tables = (table for file in find_shards(folder) for table in shards.read_rows(file, layout))
        rows = (batch for table in tables for batch in shards.with_columns(table, schema).to_batches())
        shards.append_shards(rows, new, first=max(numbers) + 1)

        # What describes all rows
        merged = merge_stats(stats, compute_stats(find_shards(new), layout, metric_names(metrics)), layout)
        own = read_json(publish_stats(folder / "stats.json", new / "own.json"))
        if conditions is not None:
            all_shards = [*known_shards, *find_shards(new)]
            merged["conditions"] = describe_conditions(
                condition_table(all_shards, layout, conditions), conditions, repo_id
            )
        merged["unordered_runs"] = sorted({*stats.get("unordered_runs", ()), *own.get("unordered_runs", ())})
        metadata = {**own["metadata"], **stats["metadata"]}
        write_json(new / "stats.json", {"schema": stats["schema"], **merged, "metadata": metadata})
        write_json(new / "layout.json", remote)
        pushed = {f"{prefix}stats.json": new / "stats.json"}
        write_dataset_card(new)
        pushed["README.md"] = write_configs_card(new / "README.md", stored[2], config, new / "card.md")
        pushed |= {f"{prefix}data/{file.name}": file for file in find_shards(new)}
        return push_files(pushed, repo_id, "dataset", "runs", parent=head.sha, revision=revision, token=token)


def push_dataset(
    folder: str | Path, repo_id: str, *, config: str | None = None, **options: Unpack[PushOptions]
) -> str:
    """Push a parameter dataset; shards that the Hub has already are not sent again.

    Args:
        folder (`str` or `Path`): A complete parameter dataset.
        repo_id (`str`): `user/name`; made when it does not exist.
        config (`str`, *optional*): Name of this dataset among several in one repository; it gets a folder of its own.
        options: `private`, `revision`, `token` and `create_pr`, see [`PushOptions`].

    Returns:
        `str`: address of the commit or pull request.

    Raises:
        ValueError: the folder is no complete dataset, the repository holds one of another layout, or the Hub refuses;
            nothing is committed then.
    """
    folder, prefix = Path(folder), config_prefix(config)
    layout, files = dataset_files(folder)
    files = {f"{prefix}{name}": path for name, path in files.items()}
    with temporary_folder() as temporary:
        names = (f"{prefix}layout.json", "README.md")
        where = options.get("revision"), options.get("token")
        _, (stored, known) = read_stored(repo_id, "dataset", names, temporary, *where)
        if stored is not None:
            theirs = NetworkIdentity.of(repo_id, ParameterLayout.from_dict(read_json(stored)))
            check_same_network(NetworkIdentity.of(folder, layout), theirs, OTHER_PLACE)
        files.pop(f"{prefix}README.md")
        files["README.md"] = write_configs_card(folder / "README.md", known, config, temporary / "card.md")
        files[f"{prefix}stats.json"] = publish_stats(folder / "stats.json", temporary / "stats.json")
        mirror = [f"{prefix}data/train-*.parquet", f"{prefix}{CONDITION_FILE}"]
        return push_files(files, repo_id, "dataset", "dataset", mirror, **options)


def write_configs_card(own: Path, known: Path | None, config: str | None, output: Path) -> Path:
    """Write the card of a repository of one or several datasets; of several, it is that of the first.

    `own` is the card of the dataset that is pushed, and `known` the card on the Hub.
    """
    name = config or DEFAULT
    text = own if known is None or config is None else known
    if known is not None:
        with errors_of(known.name):
            split_card(known.read_text(encoding="utf-8"))
    card = DatasetCard(text.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    others = [] if known is None else DatasetCard(known.read_text(encoding="utf-8")).data.configs or []
    listed = {"config_name": name, "data_files": f"{config_prefix(config)}data/train-*.parquet"}
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
    """The layout and the files of a folder by their names on the Hub; `ValueError` if it is no complete dataset."""
    check_artefact(folder, "layout.json", "a parameter dataset")
    if (folder / shards.RECORDING).exists():
        finish = shards.FINISH_COMMAND.format(folder)
        raise ValueError(f"{folder} holds a recording that was not closed; first run {finish}")
    values = read_json(folder / "layout.json")
    layout = ParameterLayout.from_dict(values)
    finish_interrupted(folder)
    check_all(folder, complete_shards(folder, layout))
    read_conditions(folder, read_stats(folder))
    base_model = BaseModel.from_dict(values["base_model"], root=folder)
    patterns = ["layout.json", CONDITION_FILE, "stats.json", "README.md", "data/train-*.parquet", "*.png"]
    patterns += [] if base_model is None else base_model.carried_files()
    return layout, select_files(folder, patterns)
