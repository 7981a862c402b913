"""Where adapters are: folders, lists of them, and repositories on the Hub."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ....adapters.config import AdapterConfig, read_adapter_config
from ....files import check_regular, errors_of, read_json
from ....hub.snapshot import Snapshot, some_of, split_hub_id
from ..checkpoint import Checkpoint, natural_key
from ..folders import TRAINER
from ..local import trainer_state
from ..sources import card_metrics

CONFIG, CARD, STATE = "adapter_config.json", "README.md", "trainer_state.json"
# In the order in which they are looked for.
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# Of folders in one another, as user/name/checkpoint-100.
MAX_DEPTH = 4
MAX_CONFIG_BYTES = 2**22
LIST_SUFFIXES = ("", ".txt", ".list")


def find_adapters(sources: str | Path | Sequence[str | Path]) -> list[Checkpoint]:
    """The adapters of some sources, in natural order; their weights and configs are not read yet.

    Args:
        sources (`str`, `Path` or a sequence of them): Folders of an adapter, folders of such folders, `user/name` or
            `user/name@revision` on the Hub, or text files that list these, one a line.

    Raises:
        ValueError: a source is missing or holds no adapter, a file of weights has no `adapter_config.json`, or a
            source is there twice.
    """
    sources = [sources] if isinstance(sources, (str, Path)) else list(sources)
    found: list[Checkpoint] = []
    for source in sources:
        found += _find(source)
    places = Counter((checkpoint.source, checkpoint.revision) for checkpoint in found)
    (place, _), count = places.most_common(1)[0]
    if count > 1:
        raise ValueError(f"expected every adapter once, found {place} {count} times.")
    return _with_runs(found)


def _find(source: str | Path, is_listed: bool = False) -> list[Checkpoint]:
    text = str(source).removeprefix("hub:")
    if text != str(source) or split_hub_id(text) is not None:
        hub_id = split_hub_id(text)
        if hub_id is None:
            raise ValueError(f"expected hub:user/name or hub:user/name@revision, found {str(source)!r}.")
        return [_remote(*hub_id)]
    path = Path(source).expanduser()
    if path.is_dir():
        return _local(path)
    if path.is_file() and not is_listed and path.suffix in LIST_SUFFIXES:
        return _listed(path)
    if path.exists():
        raise ValueError(
            f"{path}: expected the folder of an adapter, with its {CONFIG}, or a text file that lists such folders; "
            "found a file. Scalings, ranks and layers are in the config: weights alone do not say them."
        )
    raise ValueError(f"expected adapters at {path}, found no such file or folder.")


def _listed(file: Path) -> list[Checkpoint]:
    check_regular(file, "a list of adapters")
    with errors_of(file, UnicodeDecodeError):
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    found = []
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            own = file.parent / Path(line).expanduser()
            with errors_of(f"{file}, line {number}"):
                found += _find(own if own.exists() else line, is_listed=True)
    if not found:
        raise ValueError(f"{file}: expected folders of adapters or user/name on the Hub, one a line, found none.")
    return found


def _local(folder: Path) -> list[Checkpoint]:
    """The adapters in a folder, at least one."""
    found = _walk(folder, MAX_DEPTH)
    if not found:
        names = [path.name for path in folder.iterdir()]
        raise ValueError(f"{folder}: expected folders of adapters, each with its {CONFIG}, found {some_of(names)}.")
    return found


def _walk(folder: Path, depth: int) -> list[Checkpoint]:
    paths = sorted(os.scandir(folder), key=lambda entry: natural_key(entry.name))
    names = {entry.name for entry in paths}
    inner = [Path(entry) for entry in paths if not entry.name.startswith(".") and entry.is_dir()]
    if CONFIG in names or names & {*WEIGHTS} or any(name.startswith("adapter_model.") for name in names):
        steps = [path for path in inner if TRAINER.fullmatch(path.name)]
        # The last checkpoint of a Trainer is also saved beside them.
        return [one for path in steps for one in _walk(path, 0)] or [_adapter(folder, names)]
    found = [] if not depth else [one for path in inner for one in _walk(path, depth - 1)]
    weights = sorted(name for name in names if name.endswith((".safetensors", ".bin", ".pt")))
    if weights and not found and "config.json" not in names:
        raise ValueError(
            f"{folder}: expected {CONFIG} beside {weights[0]!r:.80}, found none: scalings and layers are not known. "
            "Files of kohya and the like are converted with diffusers (load_lora_weights, save_lora_adapter)."
        )
    return found


def _adapter(folder: Path, names: set[str]) -> Checkpoint:
    if CONFIG not in names:
        raise ValueError(
            f"{folder}: expected {CONFIG} beside the weights, found none; lora_alpha, the rank and the layers are in "
            "it and nowhere else: take it from where the adapter was saved."
        )
    weights = next((name for name in WEIGHTS if name in names), None)
    if weights is None:
        raise ValueError(f"{folder}: expected {' or '.join(WEIGHTS)}, found {some_of(names)}.")
    step, epoch, metrics = None, None, {}
    if (match := TRAINER.fullmatch(folder.name)) is not None:
        step = int(match[1])
        if STATE in names:
            epoch, metrics = trainer_state(folder / STATE, step)
    if CARD in names:
        metrics = card_metrics(folder / CARD, str(folder)) | metrics
    source = folder.resolve().as_posix()
    files = [folder / weights]
    about = {"config": folder / CONFIG, "step": step, "epoch": epoch, "metrics": metrics}
    return Checkpoint(str(folder), source, lambda: files, source, **about)


def _remote(repo_id: str, revision: str | None) -> Checkpoint:
    snapshot = Snapshot(repo_id, CONFIG, revision=revision)
    weights = next((name for name in WEIGHTS if name in snapshot.files), None)
    if weights is None:
        raise ValueError(f"{snapshot}: expected {' or '.join(WEIGHTS)}, found {some_of(snapshot.files)}.")
    metrics = {}
    if CARD in snapshot.files:
        snapshot.fetch([CARD])
        metrics = card_metrics(snapshot.folder / CARD, str(snapshot))

    def files() -> list[Path]:
        snapshot.fetch([weights])
        return [snapshot.folder / weights]

    source = repo_id if revision is None else f"{repo_id}@{revision}"
    config = snapshot.folder / CONFIG
    return Checkpoint(str(snapshot), source, files, source, snapshot.commit, config, metrics=metrics)


def _with_runs(found: list[Checkpoint]) -> list[Checkpoint]:
    """Adapters by the shortest paths that tell them apart; the checkpoints of one training are a run."""
    local = [Path(checkpoint.source) for checkpoint in found if checkpoint.revision is None]
    root = os.path.commonpath([path.parent for path in local]) if local else ""
    named = []
    for checkpoint in found:
        source = checkpoint.source
        if checkpoint.revision is None:
            source = Path(source).relative_to(root).as_posix()
        run = source if checkpoint.step is None else str(Path(source).parent)
        # A training alone is in the folder that all are in.
        named.append(replace(checkpoint, source=source, run=Path(root).name if run == "." else run))
    return named


def read_config_of(checkpoint: Checkpoint) -> AdapterConfig:
    """The configuration of an adapter; `ValueError` when it is malformed or may not be used."""
    with errors_of(f"{checkpoint.where}: {CONFIG}"):
        if checkpoint.config.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it is larger than {MAX_CONFIG_BYTES >> 20} MiB.")
        return read_adapter_config(read_json(checkpoint.config))
