"""Trajectories of a run: its networks followed from noise to the end, with data and figures in the report's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.dataset import ParameterDataset
from ..evaluation.autocorrelation import RunMemory
from ..evaluation.trajectory import trajectory
from ..files import write_json
from ..identity import OTHER_DATASET, check_same_network
from ..machine import locked_together, precision_of
from ..pipelines.sampling import load_pipeline, make_scheduler
from ..report.plots.trajectory import plot_trajectory, plot_trajectory_plane
from ..results.metrics import TRAJECTORY_FILE
from ..tasks.conditions import have_own_tasks
from ..tasks.evaluators import make_condition_evaluator, make_evaluator, require_task
from ..tasks.unseen_tasks import networks_for
from ..wording import argument
from .folder import Run
from .recipe import GenerateConfig, recorded_section


@precision_of("evaluation")
def trajectory_run(
    run: Run,
    dataset: ParameterDataset,
    config: GenerateConfig,
    num_starts: int = 5,
    condition: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[Path]]:
    """Follow networks of a run from noise to the end, and write data and figures into its report folder.

    Of `config`, scheduler, steps, seed and guidance matter. Networks of a collection of many tasks are followed for
    one `condition`, and compared with those of the collection that were trained on its task, if there are any.
    Returns what [`trajectory`] finds, and the files written.

    Raises:
        ValueError: a folder is missing or damaged, or the dataset names no task or base model.
    """
    with locked_together(run.folder):
        pipe = load_pipeline(run.path("diffusion"))
        check_same_network(dataset.identity, pipe.identity, OTHER_DATASET)
        pipe.scheduler = make_scheduler(config.scheduler, pipe.scheduler, config.num_inference_steps)
        pipe.set_progress_bar_config(desc="trajectory", leave=False)
        options = recorded_section(run.folder, "evaluate")
        limits = {"batch_size": options.batch_size, "max_cache_bytes": options.max_cache_mb * 2**20}
        task = require_task(dataset)
        if have_own_tasks(dataset, task) and condition is None:
            example = json.dumps(pipe.condition_encoder.example() if pipe.condition_encoder else {"classes": ["cat"]})
            raise ValueError(
                f"{dataset.source}: its networks are of many tasks; name the one to follow networks for: "
                f"{argument('condition', example, repr(example))}."
            )
        references = None
        if condition is None:
            evaluator = make_evaluator(dataset, "test", task, **limits)
        else:
            evaluator = make_condition_evaluator(dataset, "test", condition, task, **limits)
            references = networks_for(dataset, condition)
        if not evaluator.metric.is_accuracy:
            raise ValueError(
                f"expected a task with labelled examples, on which accuracies are followed, found that networks of "
                f"{dataset.folder} are judged by {evaluator.metric.name}; pdiff evaluate judges them."
            )
        originals = dataset.vectors(rows=slice(None))
        memory = RunMemory.measure(originals, dataset.order, pipe.autoencoder.normalizer)
        found = trajectory(
            pipe,
            evaluator,
            originals,
            num_starts,
            config.num_inference_steps,
            config.seed,
            memory=memory,
            condition=condition,
            guidance_scale=config.guidance_scale,
            references=references,
        )
        folder = run.path("evaluate")
        folder.mkdir(exist_ok=True)
        plots = [plot_trajectory(found), plot_trajectory_plane(found)]
        files = [plot.save_png(folder) for plot in plots]
        write_json(folder / TRAJECTORY_FILE, found)
        return found, [folder / TRAJECTORY_FILE, *files]
