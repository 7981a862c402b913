"""Stages that a run of an ablation takes over from another instead of making them again."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from ...data.dataset import ParameterDataset
from ...data.writer import finish_dataset
from ...files import atomic_folder
from ..folder import UNSEEN, Run, open_run, write_recipe
from ..recipe import Recipe
from .plan import STAGE_SECTIONS, Job


def begin_job(job: Job, folder: str | Path) -> Run:
    """Open the run folder of a job and put in what other jobs have made of it.

    Args:
        job ([`Job`]): What is to be run.
        folder (`str` or `Path`): Of the ablation.

    Returns:
        [`Run`]: with its recipe written; stages that were taken over are complete.

    Raises:
        ValueError: the folder holds another run.
    """
    run = open_run(job.recipe, Path(folder) / job.folder)
    # Not begin_run, which waits for all processes: this one has the run alone.
    write_recipe(job.recipe, run)
    for stage in STAGE_SECTIONS:
        source = job.sources.get(stage)
        if run.is_complete(stage):
            continue
        other = None if source is None else Run(Path(folder) / source.folder)
        if other is None or stage not in other.stages or not other.is_complete(stage):
            break
        if stage == "collect" and source.recipe.collect != job.recipe.collect:
            _take_first_checkpoints(run, other, job.recipe)
        else:
            run.adopt(stage, other)
    return run


def _take_first_checkpoints(run: Run, other: Run, recipe: Recipe) -> None:
    """What a collection of fewer checkpoints would have made: the first ones of the longer collection.

    Of the others, as many as networks are generated stay beside them, to be compared with.
    """
    path, count, longer = run.path("collect"), recipe.collect.num_checkpoints, ParameterDataset(other.path("collect"))
    longer.copy_first(count, path)
    rows = torch.linspace(count, len(longer) - 1, min(len(longer) - count, recipe.generate.num_samples)).round().long()
    with atomic_folder(run.folder / UNSEEN, replace=True) as partial:
        ParameterDataset.write(longer.vectors(rows=rows), longer.layout, partial)
    finish_dataset(path, {"collect": recipe.collect.model_dump(mode="json")})
    run.note("collect", other.stages["collect"])


def place_base_model(base_dir: Path, partial_dir: Path) -> None:
    """Put a trained base model where a collection looks for one that it has trained already."""
    if partial_dir.exists():
        return
    copied = partial_dir.with_name(f"{partial_dir.name}.copied")
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(base_dir, copied)
    copied.rename(partial_dir)
