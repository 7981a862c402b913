"""Generated networks to the Hub, in the form of the library that built them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import timm
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import BaseImageProcessor, BitImageProcessor, PreTrainedModel

from ..adapters.folder import CONFIG as ADAPTER_CONFIG
from ..adapters.folder import write_adapter
from ..base_model import BaseModel
from ..data.dataset import ParameterDataset
from ..data.folder import write_layout
from ..files import errors_of, read_json, temporary_folder, write_json
from ..hub.upload import PushOptions, push_files, select_files
from ..identity import NetworkIdentity, check_same_network, generated_identity
from ..layout import ParameterLayout
from ..results.metrics import METRICS_FILE, Metrics
from ..wording import argument
from ..wrapped import own_state
from .generated_card import make_generated_card
from .hub import resolve_pipeline
from .network_folder import load_generated, read_index, read_network

# What a task has to say of its images.
KEYS = ("image_size", "in_chans", "mean", "std", "interpolation", "crop_pct")


def push_generated(
    folder: str | Path,
    repo_id: str,
    source: str | Path | None = None,
    *,
    index: int | None = None,
    zoo: bool = False,
    trusted_imports: tuple[str, ...] = (),
    metrics: Metrics | None = None,
    **options: Unpack[PushOptions],
) -> str:
    """Push a generated network with all its weights, in the form that its library loads, or all networks as a zoo.

    A network of a timm base model loads by `timm.create_model("hf_hub:user/name", pretrained=True)`, one of a
    transformers base model by its class's `from_pretrained`, and one made by an import path by [`load_base_model`].

    Args:
        folder (`str` or `Path`): Generated networks.
        repo_id (`str`): `user/name`; made when it does not exist.
        source (`str` or `Path`, *optional*): Folder of the pipeline or parameter dataset whose layout and base model
            they have, or a pipeline on the Hub; the pipeline that they came from, or that is beside them, by default.
        index (`int`, *optional*): Row of `index.json`'s files; the best one of a choice by default.
        zoo (`bool`, *optional*, defaults to `False`): Push all networks as they are, with the base model's weights.
        trusted_imports (`tuple[str, ...]`, *optional*): See [`BaseModel.build`].
        metrics ([`Metrics`], *optional*): What an evaluation of these networks has found, for the card.
        options: `private`, `revision`, `token` and `create_pr`, see [`PushOptions`].

    Returns:
        `str`: address of the commit or pull request.

    Raises:
        ValueError: the networks do not fit the source, none was selected, or the Hub refuses; nothing is
            committed then.
    """
    folder, values = Path(folder), read_index(folder)
    came_from = values.get("pipeline", "../pipeline")
    # A path is relative to the networks, and nothing for others to see.
    if is_path := came_from.startswith(".."):
        values.pop("pipeline", None)
        came_from = os.path.normpath(folder / came_from)
    if source is None and is_path and not Path(came_from).is_dir():
        raise ValueError(
            f"expected the pipeline that {folder} came from at {came_from}, found none; name it as the source, or the "
            "dataset it was trained on."
        )
    source = came_from if source is None else source
    layout, base_model, task = _read_source(source, options.get("token"))
    own = NetworkIdentity.of(source, layout, base_model)
    check_same_network(generated_identity(folder), own, "give the pipeline that they came from")
    # Reads and checks every network.
    count = len(load_generated(folder, layout))
    if zoo and index is not None:
        raise ValueError(f"a zoo has all networks; give {argument('zoo')} or {argument('index')}, not both.")
    if index is None and not zoo:
        if "choice" not in values:
            raise ValueError(
                f"{folder}: expected the index of a network, or a choice (pdiff generate --choose val) whose best one "
                f"is taken, found {count} networks that nothing was chosen among."
            )
        index = 0
    if index is not None and not 0 <= index < count:
        raise ValueError(f"{folder}: expected an index from 0 to {count - 1}, found {index}.")
    with temporary_folder() as output_dir:
        files = {}
        if zoo:
            write_layout(output_dir, layout, base_model)
            write_json(output_dir / "index.json", values)
            names = [*values["files"], *filter(None, [values.get("soup")])]
            if base_model.adapter is not None:
                names += [str(Path(name).parent / ADAPTER_CONFIG) for name in names]
            files = {name: folder / name for name in names}
        elif base_model.adapter is not None:
            state = read_network(folder, values["files"][index], values)
            write_adapter(output_dir, base_model.adapter, state, base_model.adapter_constants(layout.names))
            write_json(output_dir / "index.json", {**values, "files": [values["files"][index]], "index": index})
        else:
            model = base_model.build(trusted_imports)
            path = folder / values["files"][index]
            with errors_of(path, SafetensorError, RuntimeError):
                # With re-estimated BatchNorm statistics, if it has any.
                state, own = load_file(path), own_state(model)
                for name in state.keys() & own.keys():
                    own[name].data.copy_(state[name])
            _write_model(model, layout, base_model, task, output_dir)
            write_json(output_dir / "index.json", {**values, "files": [values["files"][index]], "index": index})
        card = make_generated_card(repo_id, values, layout, base_model, index, str(source), metrics)
        (output_dir / "README.md").write_text(card, encoding="utf-8")
        files |= select_files(output_dir, ["**/*"])
        return push_files(
            files, repo_id, "model", "generated", ["?????.safetensors", "?????/adapter_*"] if zoo else [], **options
        )


def _read_source(source: str | Path, token: str | None) -> tuple[ParameterLayout, BaseModel, dict | None]:
    """Layout, base model, and what is known of the task."""
    folder = Path(source)
    if (folder / "layout.json").is_file():
        dataset = ParameterDataset(folder)
        layout, base_model, task = dataset.layout, dataset.base_model, dataset.task
    else:
        folder = folder if folder.is_dir() else resolve_pipeline(source, token=token)
        layout = ParameterLayout.from_dict(read_json(folder / "autoencoder" / "config.json")["layout"])
        base_model = BaseModel.from_dict(read_json(folder / "model_index.json").get("base_model"), root=folder)
        task = Metrics.read(folder / METRICS_FILE).task if (folder / METRICS_FILE).is_file() else None
    if base_model is None:
        raise ValueError(f"{source} carries no base model to put the networks into.")
    return layout, base_model, task


def _write_model(
    model: nn.Module, layout: ParameterLayout, base_model: BaseModel, task: Mapping | None, output_dir: Path
) -> None:
    if base_model.library == "timm":
        arguments = {k: v for k, v in base_model.kwargs.items() if k not in ("pretrained", "num_classes")}
        # The architecture's own preprocessing is that of other weights.
        model.pretrained_cfg = {**model.pretrained_cfg, **timm_preprocessing(task)}
        names = class_names(task, model.num_classes)
        labels = {"label_names": names} if names else {}
        timm.models.save_for_hf(model, str(output_dir), labels, arguments, safe_serialization=True)
    elif isinstance(model, PreTrainedModel):
        if names := class_names(task, model.config.num_labels):
            model.config.id2label = dict(enumerate(names))
            model.config.label2id = {name: index for index, name in enumerate(names)}
        model.save_pretrained(output_dir)
        if (processor := make_image_processor(task)) is not None:
            processor.save_pretrained(output_dir)
    else:
        write_layout(output_dir, layout, base_model.save_weights(model, output_dir))


def timm_preprocessing(task: Mapping | None) -> dict[str, Any]:
    """The `pretrained_cfg` entries that `timm.data.resolve_data_config` reads, of `ImageClassification.describe()`."""
    if not _is_of_images(task):
        return {}
    size = task["image_size"]
    kept = {key: task[key] for key in ("mean", "std", "interpolation", "crop_pct")}
    return {"input_size": (task["in_chans"], size, size), **kept, "crop_mode": "center"}


def make_image_processor(task: Mapping | None) -> BaseImageProcessor | None:
    """The transformers image processor that resizes, crops, scales and normalises as `ImageClassification` did."""
    if not _is_of_images(task):
        return None
    size = task["image_size"]
    return BitImageProcessor(
        # As timm rounds.
        size={"shortest_edge": int(size / task["crop_pct"])},
        crop_size={"height": size, "width": size},
        resample=Image.Resampling[task["interpolation"].upper()],
        image_mean=list(task["mean"]),
        image_std=list(task["std"]),
        do_convert_rgb=task["in_chans"] == 3,
    )


def class_names(task: Mapping | None, num_classes: int) -> list[str] | None:
    """Names of the task's classes, if they are as many as the network's."""
    names = (task or {}).get("class_names") or []
    return list(names) if len(names) == num_classes else None


def _is_of_images(task: Mapping | None) -> bool:
    return task is not None and all(task.get(key) is not None for key in KEYS)
