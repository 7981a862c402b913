"""Training of a base model that several collections start from, in a process of its own.

python -m pdiff_hf.runs.ablation.base_model RECIPE FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from ...tasks.auto import load_task
from ...tasks.base_training import train_base_model_once
from ..recipe import load_recipe
from ..stages import prepare_base_model


def main(recipe_file: str, folder: str) -> None:
    """Train the base model of a recipe into a folder that gets its name when it is complete."""
    recipe, output_dir = load_recipe(recipe_file), Path(folder)
    reference = recipe.base_model.reference()
    task = load_task(recipe.task, reference)
    partial = output_dir.with_name(f".{output_dir.name}.partial")
    model = prepare_base_model(recipe, task, output_dir)
    train_base_model_once(task, reference, model, recipe.base_training, partial)
    partial.rename(output_dir)


if __name__ == "__main__":
    main(*sys.argv[1:])
