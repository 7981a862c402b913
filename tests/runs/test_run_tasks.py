"""Runs whose networks are of many tasks."""

import json

import pytest
import torch

from pdiff_hf import PDiffPipeline
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.vectors import split_rows
from pdiff_hf.files import read_json
from pdiff_hf.pipelines.network_folder import load_generated
from pdiff_hf.results.metrics import Metrics
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import run_recipe
from pdiff_hf.runs.unseen_tasks import evaluate_tasks
from pdiff_hf.tasks.evaluators import make_evaluator, make_task_evaluator, open_task
from small_encoders import WORDS, save_encoder


@pytest.fixture(scope="module")
def tasks_run(tmp_path_factory):
    folder, lines = tmp_path_factory.mktemp("tasks") / "run", []
    recipe = load_recipe("digits-subsets", ["generate.num_samples=3"], profile="cpu-smoke")
    assert run_recipe(recipe, folder, lines.append).tasks is not None
    return folder, recipe, lines


def test_a_run_makes_networks_for_its_unseen_tasks(tasks_run):
    folder, _, lines = tasks_run
    unseen, index = ParameterDataset(folder / "dataset", "unseen"), read_json(folder / "generated" / "index.json")
    asked = ["+".join(condition["classes"]) for condition in index["condition"]]
    assert sorted(asked) == sorted(3 * unseen.tasks) and len(index["files"]) == len(asked)
    # Whoever asks the pipeline for one of them gets the first again.
    pipe = PDiffPipeline.from_pretrained(folder / "pipeline")
    drawn = pipe(2, condition={"classes": ["2", "5"]}, num_inference_steps=2, output_type="pt").parameters
    assert drawn.shape == (2, unseen.layout.num_parameters)
    with pytest.raises(ValueError, match="draws networks for a condition"):
        pipe(2, num_inference_steps=2)
    assert lines[-1].startswith("evaluate: ")


def test_the_report_judges_every_network_by_its_own_task(tasks_run):
    folder, _, _ = tasks_run
    metrics = Metrics.read(folder / "report" / "metrics.json")
    tasks, unseen = metrics.tasks, ParameterDataset(folder / "dataset", "unseen")
    assert (tasks.num_seen, tasks.num_validation, tasks.num_unseen, tasks.draws) == (28, 4, 4, 3)
    # The networks that were collected know how good they are.
    own = dict(zip(unseen.tasks, unseen.metrics["test_accuracy"].tolist(), strict=True))
    assert tasks.unseen["oracle"].accuracies == pytest.approx([own[name] for name in tasks.names], abs=1e-6)
    # And networks that were generated are whole networks, which predict by themselves.
    task, layout = open_task(unseen), unseen.layout
    images, labels = task.arrays("test")
    asked = ["+".join(found["classes"]) for found in read_json(folder / "generated" / "index.json")["condition"]]
    networks = load_generated(folder / "generated", layout)
    for place, name in enumerate(tasks.names):
        right = []
        for row in [row for row, other in enumerate(asked) if other == name]:
            layout.load_into(model := unseen.base_model.build().eval(), networks[row])
            said = model(images).argmax(1)
            members = torch.tensor([task.class_names[label] in name.split("+") for label in labels.tolist()])
            right.append((said == members).double().mean().item())
        assert tasks.unseen["generated"].accuracies[place] == pytest.approx(sum(right) / 3, abs=1e-6)
    assert {"ridge_weights", "kernel_ridge_latents", "nearest", "shuffled", "perceptron_latents"} <= {*tasks.unseen}
    report = (folder / "report" / "report.md").read_text()
    assert metrics.verdict in report and "kernel_ridge_latents" in report
    assert (folder / "report" / "unseen_tasks.png").is_file() and "unseen_tasks.png" in report
    card = (folder / "pipeline" / "README.md").read_text()
    assert "gaussian_ridge_latents" in card.replace("\\", "") and "tasks of one family" in card


def test_evaluating_again_says_the_same(tasks_run, pdiff, no_figures, tmp_path):
    folder = tasks_run[0]
    code, out, error = pdiff("evaluate", folder, "--out", tmp_path / "again", "--json")
    assert code == 0, error
    again, before = json.loads(out)["tasks"], Metrics.read(folder / "report" / "metrics.json").tasks
    assert again["unseen"]["generated"]["accuracy"] == pytest.approx(before.unseen["generated"].accuracy)
    assert again["names"] == before.names
    code, out, _ = pdiff("info", folder / "report")
    assert code == 0 and "generated" in out


def test_networks_for_other_tasks_are_one_line(tasks_run, pdiff, tmp_path):
    folder = tasks_run[0]
    other = next(name for name in ParameterDataset(folder / "dataset").tasks if name)
    condition = json.dumps({"classes": other.split("+")})
    given = ("--num-samples", "2", "--condition", condition)
    assert pdiff("generate", folder / "pipeline", "--out", tmp_path / "other", *given)[0] == 0
    code, _, error = pdiff("evaluate", folder, "--generated", tmp_path / "other", "--out", tmp_path / "report")
    assert code == 2 and "for each of the 4 unseen tasks" in error and error.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_without_unseen_tasks_a_run_ends_with_the_pipeline(no_figures, tmp_path):
    lines = []
    recipe = load_recipe("digits-subsets", ["collect.unseen=0"], profile="cpu-smoke")
    assert run_recipe(recipe, tmp_path / "run", lines.append) is None
    assert lines[-1].startswith("generate, evaluate: left out") and "\n" not in lines[-1]
    assert not (tmp_path / "run" / "generated").exists()


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
    assert code == 2 and "of many tasks; name the one to follow" in error and error.count("\n") == 1
    with pytest.raises(ValueError, match="expected networks of one task"):
        make_evaluator(dataset, "test")
    code, out, error = pdiff("inspect", folder / "dataset")
    assert code == 0 and "The networks are not evaluated" in out + error


def test_conditions_that_say_more_than_the_task_ask_for_the_mean_of_the_rest(no_figures, tmp_path):
    settings = ["collect.metric=[val_accuracy]", "generate.num_samples=2"]
    metrics = run_recipe(load_recipe("digits-subsets", settings, profile="cpu-smoke"), tmp_path / "run")
    seen = ParameterDataset(tmp_path / "run" / "dataset")
    asked = read_json(tmp_path / "run" / "generated" / "index.json")["condition"]
    mean = seen.metrics["val_accuracy"].mean().item()
    assert [found["metric"]["val_accuracy"] for found in asked] == pytest.approx([mean] * len(asked))
    assert metrics.tasks.num_unseen == 4 and metrics.tasks.unseen["nearest"].accuracy > 0


def test_networks_are_made_for_sentences(pdiff, no_figures, tmp_path):
    encoder = save_encoder(tmp_path / "encoder", (*WORDS, *map(str, range(10))))
    settings = ["collect.condition=sentence", f"collect.encoder={encoder}", "generate.num_samples=2"]
    recipe = load_recipe("digits-subsets", settings, profile="cpu-smoke")
    metrics = run_recipe(recipe, folder := tmp_path / "run")
    asked = [condition["text"] for condition in read_json(folder / "generated" / "index.json")["condition"]]
    unseen = ParameterDataset(folder / "dataset", "unseen")
    assert sorted(asked) == sorted(2 * unseen.condition_texts)
    assert metrics.tasks.num_unseen == 4 and {"ridge_weights", "shuffled", "oracle"} <= {*metrics.tasks.unseen}
    # The sentence of every network says by which labels it is judged.
    task, layout = open_task(unseen), unseen.layout
    place = unseen.condition_texts.index(asked[0])
    layout.load_into(model := unseen.base_model.build().eval(), load_generated(folder / "generated", layout)[0])
    images, labels = task.arrays("test")
    members = torch.tensor([str(label) in unseen.tasks[place].split("+") for label in labels.tolist()])
    own = (model(images).argmax(1) == members).double().mean().item()
    layout.load_into(model, load_generated(folder / "generated", layout)[1])
    other = (model(images).argmax(1) == members).double().mean().item()
    found = metrics.tasks.unseen["generated"].accuracies[metrics.tasks.names.index(unseen.tasks[place])]
    assert found == pytest.approx((own + other) / 2, abs=1e-6)
    # Anything may be asked for; only what is known can be judged.
    given = ("--num-samples", "1", "--condition", '{"text": "Is it about 7?"}')
    assert pdiff("generate", folder / "pipeline", "--out", tmp_path / "other", *given)[0] == 0
    code, _, error = pdiff("trajectory", folder, "--condition", '{"text": "cats"}')
    assert code == 2 and "expected a sentence of a task of the collection, found 'cats'" in error


def test_networks_for_one_task_are_followed(tasks_run, pdiff):
    folder, _, _ = tasks_run
    unseen = ParameterDataset(folder / "dataset", "unseen")
    code, _, error = pdiff("trajectory", folder)
    assert code == 2 and "of many tasks; name the one to follow networks for: --condition" in error
    assert len(error.strip().splitlines()) == 1
    for wrong, message in (('{"classes": ["cat"]}', "cat"), ('{"label": "2"}', "expected an object of classes")):
        code, _, error = pdiff("trajectory", folder, "--condition", wrong)
        assert code == 2 and message in error
    classes = unseen.tasks[0].split("+")
    given = json.dumps({"classes": classes})
    code, output, error = pdiff("trajectory", folder, "--condition", given, "--num-starts", "3", "--json")
    assert code == 0, error
    found = json.loads(output)
    assert found["condition"] == {"classes": classes} and found["compared_with"] == "networks trained on the task"
    # The network that was collected for the task is known by its accuracy on it.
    rows = [row for row, name in enumerate(unseen.tasks) if name == unseen.tasks[0]]
    own = unseen.metrics["test_accuracy"][rows].mean().item()
    assert found["originals"]["accuracy"]["mean"] == pytest.approx(own, abs=1e-6)
    assert (folder / "report" / "trajectory.png").is_file()
    # And the generated ones are what the pipeline draws for it.
    assert len(found["noisy"]["accuracy"][-1]) == 3 and max(found["noisy"]["accuracy"][-1]) <= 1


def test_a_map_of_latents_by_condition_is_in_the_report(tasks_run):
    folder, _, _ = tasks_run
    assert (folder / "report" / "condition_map.png").is_file()
    assert "condition_map.png" in (folder / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("recipe", "axis", "message"),
    [
        ("digits-subsets", "noise=none,both", "digits-subsets collects networks of many tasks"),
        ("digits-accuracy", "noise=none,both", "digits-accuracy collects networks of independent runs"),
        ("digits-mlp", "collect.kind=trajectory,runs", "digits-mlp collects networks of independent runs"),
    ],
)
def test_an_ablation_of_what_its_points_cannot_share_is_refused_before_it_begins(
    pdiff, tmp_path, recipe, axis, message
):
    options = ["--profile", "cpu-smoke", "--out", tmp_path / "ablation"]
    if "kind" in axis:
        options += ["--set", "collect.runs=4"]
    code, _, error = pdiff("ablate", recipe, "--axis", axis, *options)
    assert code == 2 and message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "ablation").exists()


def test_a_run_that_would_draw_for_no_condition_is_refused_before_it_begins(tmp_path):
    recipe = load_recipe("digits-accuracy", ["generate.guidance_scale=1"], profile="cpu-smoke")
    with pytest.raises(ValueError, match=r"makes val_accuracy conditions.*generate\.guidance_scale=0"):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_does_not_depend_on_the_generator_is_judged_once_and_all_logits_need_not_fit(tasks_run, monkeypatch):
    folder, recipe, _ = tasks_run
    dataset, first = ParameterDataset(folder / "dataset"), Metrics.read(folder / "report" / "metrics.json").tasks
    known = first.model_copy(deep=True)
    for group in known.unseen.values():
        group.accuracies = [0.25] * len(group.accuracies)
    monkeypatch.setattr("pdiff_hf.evaluation.unseen_tasks.evaluate.LOGITS_BYTES", 0)
    given = dataset, open_task(dataset), recipe.evaluate, folder / "pipeline", folder / "generated"
    found = evaluate_tasks(*given, known=known)
    assert list(found.tasks.unseen) == list(first.unseen)
    for name, group in found.tasks.unseen.items():
        before = first.unseen[name]
        is_taken = group.role in ("reference", "ceiling", "weights")
        assert group.accuracies == ([0.25] * len(before.accuracies) if is_taken else before.accuracies), name
        assert group.ensembles == pytest.approx(before.ensembles)
