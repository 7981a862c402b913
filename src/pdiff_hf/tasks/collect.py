"""Collection of checkpoints: the base model is trained on, and its selected tensors are saved at every step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn

from ..adapters.gauge import lora_pairs, mean_adapter
from ..base_model import BaseModel
from ..data.dataset import ParameterDataset
from ..data.gauge import gauge_reference
from ..data.vectors import dataset_vectors
from ..data.writer import save_parameter_dataset
from ..evaluation.evaluator import ParameterEvaluator
from ..files import atomic_folder, check_new, partial_folder, read_json, write_json
from ..layout import ParameterLayout
from ..machine import one_writer, process_state
from ..progress import ProgressBar
from ..wrapped import copy_network, own_state
from .collect_runs import Collector, RunCollector, RunsCollector, is_whole_network
from .collect_tasks import TasksCollector
from .config import BaseTrainingConfig, CollectConfig, CollectionConfig, ZooConfig
from .families_config import TasksConfig
from .populations import accuracies
from .runs_config import RunsConfig
from .task import Task

COLLECTORS: dict[type[CollectionConfig], type[Collector]] = {
    CollectConfig: RunCollector,
    RunsConfig: RunsCollector,
    TasksConfig: TasksCollector,
}

PLAN_FILE = "plan.json"
RUNS_AT_ONCE = "runs_at_once"


def check_collection(model: nn.Module, config: CollectionConfig, output_dir: str | Path) -> ParameterLayout:
    """The selected tensors of a base model, trained or not: all that can be checked before any training.

    Raises:
        ValueError: the selection is empty, leaves tensors out in which independent runs differ, or `output_dir` is not
            empty.
    """
    check_new(output_dir, "the checkpoints")
    layout = ParameterLayout.from_model(model, config.select, config.buffers)
    is_trajectory = isinstance(config, CollectConfig)
    # Of part of a network in which the rest is fixed, runs differ in that part alone.
    if config.independent and config.runs > 1 if is_trajectory else is_whole_network(model, layout):
        floats = [name for name, tensor in own_state(model).items() if tensor.is_floating_point()]
        if left_out := [name for name in floats if name not in layout.names]:
            other = ", or collect.independent=false" if is_trajectory else ""
            raise ValueError(
                f"expected independent runs to collect every tensor, found that {left_out[0]!r} is left out; set "
                f"collect.select=all and collect.buffers=true{other}"
            )
    return layout


@one_writer("output_dir", beside=True)
def collect_checkpoints(
    task: Task,
    base_model: BaseModel,
    model: nn.Module,
    base_training: BaseTrainingConfig,
    config: CollectionConfig,
    output_dir: str | Path,
    seed: int = 0,
    progress: bool = True,
    build: Callable[[], nn.Module] | None = None,
) -> dict[str, Any]:
    """Trains the selected tensors and writes a parameter dataset with `runs * rows_per_run` rows.

    By default, checkpoints are collected while a base model is trained on. Everything that is not selected stays as it
    is, so that a row and the base model are the trained network: see [`train_selection`]. Of [`ZooConfig`], networks
    are trained from the start, see [`train_networks`]; of [`TasksConfig`] those of validation and unseen tasks are
    datasets of their own in folders of the dataset: `ParameterDataset(output_dir, "unseen")`.

    In the end val and test accuracy of all rows are computed, by the labels of their population or task where there
    are several, and written to the dataset; `train_loss` is that of the batch of the checkpoint's step. Where
    `collect.metric` names it, so is `val_ece`, [`EvaluatorOutput.ece`] on the val split.

    Started by `accelerate launch`, all processes call it with the same arguments; they share the runs and the
    evaluation, and the dataset is that of one process. When it is stopped and called again, runs that were complete
    are not repeated.

    Args:
        task ([`Task`]): The examples.
        base_model ([`BaseModel`]): How `model` is built; the dataset carries it with the weights of `model`.
        model (`nn.Module`): The trained base model, on the device where runs are trained; for [`ZooConfig`] one that
            has what is not selected. It is not changed.
        base_training ([`BaseTrainingConfig`]): How it was trained; independent runs train in the same way.
        config ([`CollectConfig`], [`RunsConfig`] or [`TasksConfig`]): Hyper-parameters.
        output_dir (`str` or `Path`): Folder of the parameter dataset.
        seed (`int`, *optional*, defaults to 0): Run `r` of a trajectory shuffles the images by `seed + r`; populations
            are dealt by it.
        progress (`bool`, *optional*, defaults to `True`): Whether to show progress bars.
        build (`Callable`, *optional*): Makes the network that an independent run begins with, drawing from torch's
            generator what it has of its own; `base_model` without weights by default.

    Returns:
        `dict[str, Any]`: `num_checkpoints`, `num_parameters`, and mean `val_accuracy` and `test_accuracy` (fractions);
            of other datasets `num_validation`, `num_unseen`.

    Raises:
        ValueError: as [`check_collection`], or the loss is no longer finite.
    """
    state = process_state()
    model = copy_network(model)
    layout = check_collection(model, config, output_dir)
    folder = partial_folder(output_dir)
    metadata = {
        "task": task.config.model_dump(mode="json"),
        "base_training": base_training.model_dump(mode="json"),
        "collect": config.model_dump(mode="json"),
    }
    if build is None:
        build = replace(base_model, weights=None, sha256=None, repo=None, revision=None).build
    runs = COLLECTORS[type(config)](task, build, model, base_training, config, layout, seed)
    metadata |= runs.metadata
    file = folder / PLAN_FILE
    if state.is_main_process:
        base_model = base_model.save_weights(model, folder)
        plan = {**metadata, "seed": seed, "base_model": base_model.to_dict()}
        known = read_json(file) if file.is_file() else {}
        number = known.pop(RUNS_AT_ONCE, None)
        # What was done for another plan is of no use.
        if known != plan:
            shutil.rmtree(folder / "runs", ignore_errors=True)
            number = None
        # An accelerator may have other free memory next time.
        write_json(file, {**plan, RUNS_AT_ONCE: number or runs.runs_at_once(state.num_processes)})
    state.wait_for_everyone()

    # 1. Runs, a part at a time into folders that get their names when they are complete
    number = read_json(file)[RUNS_AT_ONCE]
    parts = [range(first, min(first + number, config.runs)) for first in range(0, config.runs, number)]
    folders = {part: folder / "runs" / f"{part[0]:06d}" for part in parts}
    missing = [part for part, path in folders.items() if not path.exists()]
    # No process completes a part before all have looked.
    state.wait_for_everyone()
    own = missing[state.process_index :: state.num_processes]
    total = sum(len(part) for part in own) * config.rows_per_run
    with ProgressBar(
        total=total, desc="collect", disable=not (progress and state.is_main_process), leave=False
    ) as bar:
        for part in own:
            with atomic_folder(folders[part]) as partial:
                runs.collect(part, partial, bar.update)
    state.wait_for_everyone()

    # 2. All rows, their accuracies on both splits in one pass, and the folder
    rows = datasets.concatenate_datasets([ParameterDataset(path).rows for path in folders.values()])
    vectors, columns = dataset_vectors(rows, layout), rows.remove_columns("parameters").with_format(None)[:]
    sizes = [len(task.labels(split)) for split in ("val", "test")]
    images = torch.cat([task.arrays(split)[0] for split in ("val", "test")])
    # Of what they predict, which is all that is asked, labels are no part.
    labels = torch.zeros(sum(sizes), dtype=torch.int64)
    # On a CPU one network at a time, so that accuracies do not depend on how many processes there are.
    at_once = 1 if runs.device.type == "cpu" else None
    evaluator = ParameterEvaluator(model, layout, images, labels, networks_at_once=at_once, accelerator=state)
    predictions = evaluator.predictions(vectors).split(sizes, dim=1)
    val, test = (
        accuracies(predicted, runs.labels(split, columns))
        for split, predicted in zip(("val", "test"), predictions, strict=True)
    )
    columns |= {"val_accuracy": val.tolist(), "test_accuracy": test.tolist()}
    if isinstance(config, ZooConfig) and "val_ece" in config.metric:
        columns["val_ece"] = _calibration_errors(runs, vectors, columns, at_once).tolist()
    collected = runs.datasets(columns)
    if state.is_main_process:
        if lora_pairs(layout) and gauge_reference(layout, base_model, folder) is None:
            # All datasets are in the frame of the mean of the one that generators are trained on.
            layout.load_into(model, mean_adapter(layout, vectors[collected[""].rows]))
            base_model = base_model.save_weights(model, folder / "mean")
        shutil.rmtree(folder / "dataset", ignore_errors=True)
        for name, part in collected.items():
            own = {key: [values[row] for row in part.rows] for key, values in columns.items()} | part.columns
            where = folder / "dataset" / name
            known = (base_model, own, {**metadata, **part.metadata})
            save_parameter_dataset(vectors[part.rows], layout, where, *known, conditions=part.conditions)
        (folder / "dataset").rename(output_dir)
        shutil.rmtree(folder)
    state.wait_for_everyone()
    main = collected.pop("").rows
    return {
        "num_checkpoints": len(main),
        "num_parameters": layout.num_parameters,
        "val_accuracy": val[main].mean().item(),
        "test_accuracy": test[main].mean().item(),
        **{f"num_{name}": len(part.rows) for name, part in collected.items()},
    }


def _calibration_errors(
    runs: Collector, vectors: torch.Tensor, columns: dict[str, list], at_once: int | None
) -> torch.Tensor:
    """Expected calibration errors `(K,)` of rows `(K, D)` on the val split, each by its own labels."""
    distinct, own = runs.labels("val", columns).unique(dim=0, return_inverse=True)
    images, labels = runs.task.arrays("val")
    evaluator = ParameterEvaluator(
        runs.model,
        runs.layout,
        images,
        torch.zeros_like(labels),
        populations={str(place): row for place, row in enumerate(distinct)},
        networks_at_once=at_once,
        accelerator=process_state(),
    )
    return evaluator.predict(vectors, population=own).ece
