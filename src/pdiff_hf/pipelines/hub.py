"""Pipelines from the Hub."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from diffusers.pipelines.pipeline_loading_utils import variant_compatible_siblings

from ..base_model import BaseModel
from ..files import errors_of, read_json
from ..hub.snapshot import PICKLES, Snapshot, split_hub_id
from ..results.metrics import METRICS_FILE, TRAINED_FILES

# What a component of a pipeline may come from; an index could name any module that is installed.
COMPONENT_LIBRARIES = ("diffusers", "pdiff_hf")


def download_pipeline(repo_id: str, variant: str | None = None, components: Iterable[str] = (), **options) -> Path:
    """Download a pipeline with its base model's weights.

    Args:
        repo_id (`str`): `user/name`.
        variant (`str`, *optional*): Of the weights, such as `"fp16"`.
        components (`Iterable[str]`, *optional*): Those that are passed in and need not be downloaded.
        options: `revision`, `token`, `cache_dir`, `local_files_only` and `force_download`.

    Returns:
        `Path`: a folder in the cache that [`PDiffPipeline.from_pretrained`] takes.

    Raises:
        ValueError: there is no such pipeline, it carries pickles or code of its own only, or a file of it is missing,
            malformed or damaged.
    """
    snapshot = Snapshot(repo_id, "model_index.json", **options)
    index = read_json(snapshot.folder / "model_index.json")
    if not isinstance(index, dict) or index.get("_class_name") != "PDiffPipeline":
        own = isinstance(index, dict) and isinstance(index.get("_class_name"), list)
        hint = "; it carries its own code, take the main branch" if own else ""
        raise ValueError(f"{snapshot}: expected a PDiffPipeline in model_index.json, found another{hint}.")
    names, all_weights = [], []
    for name, value in index.items():
        # An optional component that is not there is [null, null].
        if name.startswith("_") or not isinstance(value, list) or name in components or value == [None, None]:
            continue
        if len(value) != 2 or value[0] not in COMPONENT_LIBRARIES:
            raise ValueError(
                f"{snapshot}: component {name!r} should come from one of {COMPONENT_LIBRARIES}, found {value}."
            )
        own = [file for file in snapshot.match(f"{glob.escape(name)}/*") if file.count("/") == 1]
        weights = [file for file in own if file.endswith(".safetensors")]
        pickles = [file for file in own if file.endswith(PICKLES)]
        if pickles and not weights:
            raise ValueError(
                f"{snapshot}: expected safetensors, found {pickles[0]!r}, which runs code when it is read; ask its "
                "owner to save it as safetensors."
            )
        indices = [file for file in own if ".safetensors.index." in file]
        all_weights += weights + indices
        names += [file for file in own if file.endswith(".json") and file not in indices]
    if all_weights or variant is not None:
        names += variant_compatible_siblings(all_weights, variant=variant)[0]
    with errors_of(f"{snapshot}: model_index.json", TypeError):
        base_model = BaseModel.from_dict(index.get("base_model"), root=snapshot.folder)
    if base_model is not None and base_model.carried_weights is not None:
        names.append(base_model.weights)
    # What a card of it is made of, should it be pushed again.
    names += snapshot.files & {*TRAINED_FILES, METRICS_FILE}
    snapshot.fetch(names)
    with errors_of(snapshot):
        if base_model is not None:
            base_model.carried_files()
    return snapshot.folder


def resolve_pipeline(source: str | Path, token: str | None = None) -> Path:
    """The folder of a pipeline: `source` itself, or a download of `user/name[@revision]`."""
    found = split_hub_id(source)
    return Path(source) if found is None else download_pipeline(found[0], revision=found[1], token=token)
