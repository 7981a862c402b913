"""The way of generation of a run's pipeline, as files in its report folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from .data.dataset import dataset_vectors, load_base_model, load_parameter_dataset
from .evaluation.evaluator import ParameterEvaluator
from .evaluation.trajectory import trajectory
from .files import write_json
from .generation import SCHEDULERS, load_pipeline
from .recipe import GenerateConfig, parse_config
from .report.plots.trajectory import plot_trajectory, plot_trajectory_plane
from .results.metrics import TRAJECTORY_FILE
from .run_evaluation import evaluate_config
from .run_folder import RECIPE_FILE, Run
from .tasks.stored import load_stored_task


def generate_config(run: Run, overrides: Mapping[str, Any] | None = None) -> GenerateConfig:
    """The recipe's `generate` section if `run` has a recipe, else the defaults; `overrides` win.

    Raises:
        ValueError: a value is not valid.
    """
    path = run.folder / RECIPE_FILE
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return parse_config(GenerateConfig, {**values.get("generate", {}), **(overrides or {})})


def trajectory_run(
    run: Run, config: GenerateConfig, num_starts: int = 5, trusted_imports: Sequence[str] = ()
) -> tuple[dict[str, Any], list[Path]]:
    """Follow networks of a run from noise to the end, and write data and figures into its report folder.

    Args:
        run ([`Run`]): With a dataset and a pipeline.
        config ([`GenerateConfig`]): Scheduler, steps and seed; `num_samples` and `truncation` do not matter here.
        num_starts (`int`, *optional*, defaults to 5): Number of networks.
        trusted_imports (`Sequence[str]`, *optional*): See [`BaseModel.build`].

    Returns:
        `tuple`: what [`trajectory`] finds, and the files written.

    Raises:
        ValueError: a folder is missing or damaged, or the dataset names no task or base model.
    """
    dataset_dir = run.path("collect")
    pipe = load_pipeline(run.path("diffusion"))
    pipe.scheduler = SCHEDULERS[config.scheduler].from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(desc="trajectory", leave=False)
    dataset, layout = load_parameter_dataset(dataset_dir)
    task, base_model = load_stored_task(dataset_dir), load_base_model(dataset_dir)
    if task is None or base_model is None:
        raise ValueError(f"{dataset_dir} names no {'task' if task is None else 'base model'}; networks need both.")
    options = evaluate_config(run)
    evaluator = ParameterEvaluator(
        base_model.build(trusted_imports),
        layout,
        *task.arrays("test"),
        batch_size=options.batch_size,
        device=torch.accelerator.current_accelerator(check_available=True) or "cpu",
        max_cache_bytes=options.max_cache_mb * 2**20,
    )
    found = trajectory(
        pipe, evaluator, dataset_vectors(dataset, layout), num_starts, config.num_inference_steps, config.seed
    )
    folder = run.path("evaluate")
    folder.mkdir(exist_ok=True)
    write_json(folder / TRAJECTORY_FILE, found)
    plots = [plot_trajectory(found), plot_trajectory_plane(found)]
    return found, [folder / TRAJECTORY_FILE, *(plot.save_png(folder) for plot in plots)]
