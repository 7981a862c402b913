"""The way of generation of a run: its networks from noise to the end, in data and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..data.dataset import ParameterDataset
from ..evaluation.trajectory import trajectory
from ..files import write_json
from ..pipelines.sampling import SCHEDULERS, load_pipeline
from ..report.plots.trajectory import plot_trajectory, plot_trajectory_plane
from ..results.metrics import TRAJECTORY_FILE
from ..tasks.evaluators import make_evaluator
from .evaluate import evaluate_config
from .folder import RECIPE_FILE, Run
from .recipe import GenerateConfig
from .validation import parse_config


def generate_config(run: Run, overrides: Mapping[str, Any] | None = None) -> GenerateConfig:
    """The recipe's `generate` section if `run` has a recipe, else the defaults; `overrides` win.

    Raises:
        ValueError: a value is not valid.
    """
    path = run.folder / RECIPE_FILE
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return parse_config(GenerateConfig, {**values.get("generate", {}), **(overrides or {})})


def trajectory_run(
    run: Run, dataset: ParameterDataset, config: GenerateConfig, num_starts: int = 5
) -> tuple[dict[str, Any], list[Path]]:
    """Follow networks of a run from noise to the end, and write data and figures into its report folder.

    Args:
        run ([`Run`]): With a pipeline.
        dataset ([`ParameterDataset`]): That of the run.
        config ([`GenerateConfig`]): Scheduler, steps and seed; `num_samples` and `truncation` do not matter here.
        num_starts (`int`, *optional*, defaults to 5): Number of networks.

    Returns:
        `tuple`: what [`trajectory`] finds, and the files written.

    Raises:
        ValueError: a folder is missing or damaged, or the dataset names no task or base model.
    """
    pipe = load_pipeline(run.path("diffusion"))
    pipe.scheduler = SCHEDULERS[config.scheduler].from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(desc="trajectory", leave=False)
    options = evaluate_config(run)
    evaluator = make_evaluator(
        dataset, "test", batch_size=options.batch_size, max_cache_bytes=options.max_cache_mb * 2**20
    )
    originals = dataset.vectors(rows=slice(None))
    found = trajectory(pipe, evaluator, originals, num_starts, config.num_inference_steps, config.seed)
    folder = run.path("evaluate")
    folder.mkdir(exist_ok=True)
    write_json(folder / TRAJECTORY_FILE, found)
    plots = [plot_trajectory(found), plot_trajectory_plane(found)]
    return found, [folder / TRAJECTORY_FILE, *(plot.save_png(folder) for plot in plots)]
