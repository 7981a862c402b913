"""What the page is about: the pipeline, the originals that it was trained on, and examples to judge networks by."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.dataset import ParameterDataset
from ..evaluation.scores import NetworkEvaluator
from ..files import read_object
from ..hub.snapshot import split_hub_id
from ..identity import OTHER_DATASET, check_same_network
from ..pipelines.hub import resolve_pipeline
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..pipelines.sampling import load_pipeline
from ..results.metrics import METRICS_FILE
from ..runs.folder import STAGES
from ..sections import by_kind
from ..tasks.auto import TASKS
from ..tasks.config import FunctionConfig, SplitConfig
from ..tasks.evaluators import AnyTask, load_any_task, load_given_task, open_task

# What is in every installation of scikit-learn.
EMBEDDED = "digits"
NO_ORIGINALS = (
    "The originals are not here, so the plot is without them; name the parameter dataset with --dataset to see them."
)


@dataclass
class Source:
    """What was found of a pipeline.

    Args:
        name (`str`): What it was opened by.
        pipeline ([`PDiffPipeline`]): Loaded.
        dataset ([`ParameterDataset`], *optional*): The originals.
        task (*optional*): What judges networks.
        notes (`list[str]`): What is not there and why, a sentence each, for whoever looks at the page.
        trusted_imports (`Sequence[str]`): May be imported to build the network.
    """

    name: str
    pipeline: PDiffPipeline
    dataset: ParameterDataset | None = None
    task: AnyTask | None = None
    notes: list[str] = field(default_factory=list)
    trusted_imports: Sequence[str] = ()


def pipeline_of(path: str) -> str:
    """The pipeline of a run by the run's folder; anything else names a pipeline itself."""
    inside = Path(path, STAGES["diffusion"])
    return str(inside) if (inside / "model_index.json").is_file() else path


def open_source(
    pipeline: str,
    dataset: str | None = None,
    task: SplitConfig | FunctionConfig | None = None,
    trusted_imports: Sequence[str] = (),
) -> Source:
    """Open a pipeline with what else there is to know of it.

    Args:
        pipeline (`str`): Folder of a run or a pipeline, or `user/name[@revision]` on the Hub.
        dataset (`str`, *optional*): The originals; by default those of the run that the pipeline is in.
        task (*optional*): What networks are judged by; by default what the dataset names, or without one the embedded
            digits, if these are what the pipeline was evaluated on.
        trusted_imports (`Sequence[str]`, *optional*): May be imported to build the network.

    Raises:
        ValueError: there is no such pipeline, or what was named does not belong to it. What was not named and cannot
            be used is left out, with a note.
    """
    pipeline = pipeline_of(pipeline)
    folder = resolve_pipeline(pipeline)
    source = Source(pipeline, load_pipeline(folder), trusted_imports=trusted_imports)
    source.pipeline.set_progress_bar_config(disable=True)
    beside = None if split_hub_id(pipeline) else Path(os.path.normpath(folder / ".." / STAGES["collect"]))
    if dataset is not None or (beside is not None and (beside / "layout.json").is_file()):
        try:
            opened = ParameterDataset(dataset or str(beside), trusted_imports=trusted_imports)
            check_same_network(opened.identity, source.pipeline.identity, OTHER_DATASET)
            source.dataset = opened
        except ValueError as error:
            if dataset is not None:
                raise
            source.notes.append(f"The originals beside the pipeline cannot be used: {error}")
    else:
        source.notes.append(NO_ORIGINALS)
    if task is not None:
        source.task = load_given_task(task, source.pipeline.base_model)
        return source
    try:
        if source.dataset is not None:
            source.task = open_task(source.dataset)
        else:
            source.task = _embedded_task(folder, source.pipeline)
        if source.task is None:
            source.notes.append("Nothing says what judges these networks, so there is no accuracy; give --task.")
    except (ValueError, OSError) as error:
        source.notes.append(f"There is no accuracy, because the examples cannot be loaded: {error}")
    return source


def _embedded_task(folder: Path, pipeline: PDiffPipeline) -> AnyTask | None:
    """The task that a pipeline was evaluated on, if its examples are in every installation."""
    path = folder / METRICS_FILE
    told: dict[str, Any] = read_object(path).get("task") or {} if path.is_file() else {}
    if told.get("dataset") != EMBEDDED:
        return None
    kinds = by_kind(*TASKS)
    config = kinds.get(told.get("kind", "image_classification"))
    known = {key: value for key, value in told.items() if config is not None and key in config.model_fields}
    return load_any_task(known, pipeline.base_model)


def quiet_evaluator(make: Any, *arguments: Any, **options: Any) -> NetworkEvaluator:
    """An evaluator without the warning that a network costs full forward passes: nobody on a page can change it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return make(*arguments, **options)
