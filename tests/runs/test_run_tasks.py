"""Runs whose networks are of many tasks."""

import pytest
import torch

from pdiff_hf import PDiffPipeline
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.vectors import split_rows
from pdiff_hf.files import read_json
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import run_recipe
from pdiff_hf.tasks.evaluators import make_evaluator, make_task_evaluator


@pytest.fixture(scope="module")
def tasks_run(tmp_path_factory):
    folder, lines = tmp_path_factory.mktemp("tasks") / "run", []
    recipe = load_recipe("digits-subsets", profile="cpu-smoke")
    assert run_recipe(recipe, folder, lines.append) is None
    return folder, recipe, lines


def test_a_run_makes_a_pipeline_for_conditions_and_says_that_it_judges_none(tasks_run):
    folder, _, lines = tasks_run
    (line,) = [line for line in lines if line.startswith("generate, evaluate: left out")]
    assert "\n" not in line and "benchmarks/unseen_tasks.py" in line
    assert not (folder / "generated").exists() and not (folder / "report").exists()
    pipe = PDiffPipeline.from_pretrained(folder / "pipeline")
    drawn = pipe(2, condition={"classes": ["2", "5"]}, num_inference_steps=2, output_type="pt").parameters
    assert drawn.shape == (2, ParameterDataset(folder / "dataset").layout.num_parameters)
    with pytest.raises(ValueError, match="draws networks for a condition"):
        pipe(2, num_inference_steps=2)


def test_the_gate_judges_networks_by_the_labels_of_their_own_task(tasks_run):
    folder, recipe, _ = tasks_run
    dataset = ParameterDataset(folder / "dataset")
    _, held_out = split_rows(len(dataset), recipe.autoencoder.holdout_every)
    gate = read_json(folder / "autoencoder" / "reconstruction.json")
    assert gate["accuracy_original"] == pytest.approx(
        dataset.metrics["val_accuracy"][held_out].mean().item(), abs=1e-6
    )
    # Whoever learns tasks learns those that none of the networks has, and is asked for them.
    assert gate["combined_networks"] == 3 and 0.5 < gate["analogies_agreement"] <= 1
    assert any("for tasks that no network was trained on" in line for line in tasks_run[2])


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_evaluator_of_the_dataset_knows_the_task_of_every_row(tasks_run, split):
    dataset = ParameterDataset(tasks_run[0] / "dataset", "unseen")
    evaluator = make_task_evaluator(dataset, split)
    found = evaluator.score(dataset.vectors(), population=evaluator.rows)
    torch.testing.assert_close(found, dataset.metrics[f"{split}_accuracy"], atol=1e-6, rtol=0)
    assert [evaluator.populations[row] for row in evaluator.rows] == dataset.tasks


def test_what_would_guess_the_task_is_one_line(tasks_run, pdiff):
    folder = tasks_run[0]
    dataset = ParameterDataset(folder / "dataset")
    code, _, error = pdiff("trajectory", folder)
    assert code == 2 and "expected networks of one task" in error and error.count("\n") == 1
    with pytest.raises(ValueError, match="expected networks of one task"):
        make_evaluator(dataset, "test")
    code, out, error = pdiff("inspect", folder / "dataset")
    assert code == 0 and "The networks are not evaluated" in out + error
