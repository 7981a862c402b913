"""What runs of an ablation share: stages that one takes over from another, and base models.

`python -m pdiff_hf.runs.ablation.share RECIPE FOLDER` trains a base model that several collections start from.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from ...data.dataset import ParameterDataset
from ...data.writer import finish_dataset
from ...files import atomic_folder, partial_folder
from ...tasks.auto import load_task
from ...tasks.base_training import train_base_model_once
from ..folder import UNSEEN, Run, open_run, write_recipe
from ..recipe import Recipe, fit_recipe, load_recipe
from ..stages import prepare_base_model
from .plan import STAGE_SECTIONS, Job


def begin_job(job: Job, folder: str | Path) -> Run:
    """Open the run folder of a job, with its recipe, and put in the complete stages that other jobs have made of it.

    Raises:
        ValueError: the folder holds another run.
    """
    run = open_run(fit_recipe(job.recipe)[0], Path(folder) / job.folder)
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


def train_shared_base_model(recipe_file: str, folder: str) -> None:
    """Train the base model of a recipe into a folder that gets its name when it is complete."""
    recipe, output_dir = load_recipe(recipe_file), Path(folder)
    reference = recipe.base_model.reference()
    task = load_task(recipe.task, reference)
    partial = partial_folder(output_dir)
    model = prepare_base_model(recipe, task, output_dir)
    train_base_model_once(task, reference, model, recipe.base_training, partial)
    partial.rename(output_dir)


if __name__ == "__main__":
    train_shared_base_model(*sys.argv[1:])
