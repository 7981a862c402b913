"""A whole run, and generation from another run's pipeline, by two processes; started by `accelerate launch`."""

import sys
from pathlib import Path

import yaml
from accelerate import PartialState

from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.pipelines.sampling import load_pipeline
from pdiff_hf.runs.generate import ChoiceConfig, generate_networks
from pdiff_hf.runs.recipe import Recipe
from pdiff_hf.runs.stages import run_recipe


def generate(run, output):
    """More networks than are sampled at once; and the best of a few."""
    pipeline = load_pipeline(run / "pipeline")
    generate_networks(pipeline, output / "many", 300, num_inference_steps=2, scheduler="ddpm")
    choice = ChoiceConfig(ParameterDataset(run / "dataset"), top=2, soup=True)
    generate_networks(pipeline, output / "selected", 12, num_inference_steps=2, choice=choice)


def main(recipe, run, other, output):
    lines = []
    run_recipe(Recipe.model_validate(yaml.safe_load(Path(recipe).read_text())), run, lines.append)
    # Complete stages are skipped by all processes.
    run_recipe(Recipe.model_validate(yaml.safe_load(Path(recipe).read_text())), run, lines.append)
    assert sum("complete, skipped" in line for line in lines) == 6, lines
    state = PartialState()
    assert state.num_processes == 2
    generate(Path(other), Path(output))
    state.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
