import copy
import json
import sys
from pathlib import Path

import pytest
import yaml

import results
from golden_files import METRICS, check_golden
from pdiff_hf.evaluation.summary import aggregate_seeds
from pdiff_hf.files import read_json
from pdiff_hf.machine import describe_hardware
from pdiff_hf.results.metrics import Metrics
from pdiff_hf.runs.recipe import load_recipe
from results_page.cells import Cell, find_cell, missing_cells, paper, paper_cells, paper_numbers
from results_page.page import make_page
from results_page.runs import collect_results

ROOT = Path(__file__).parents[2]
RECIPE = {
    "seed": 0,
    "task": {"dataset": "digits"},
    "base_model": {"library": "import", "name": "pdiff_hf.tasks.networks:mlp3", "kwargs": {}},
    "base_training": {"epochs": 3, "learning_rate": 0.001, "train_batch_size": 64},
    "collect": {"select": "all", "num_checkpoints": 24, "runs": 1, "every": 1},
    "autoencoder": {"kind": "pdiff", "preset": "fast", "latent_channels": 4, "latent_length": 2, "steps": 200},
    "diffusion": {"preset": "fast", "steps": 600},
    "generate": {"num_samples": 5, "scheduler": "dpmsolver++", "num_inference_steps": 20},
}
TASK = {"num_train": 1000, "num_val": 300, "num_test": 50, "image_size": 32}
HARDWARE = {"cpu": "Example CPU", "cores": 2, "memory_gb": 16.0, "accelerator": None}
TIMES = {"collect": 60.5, "autoencoder": 12.25, "diffusion": 30.0, "generate": 1.0, "evaluate": 9.0}


@pytest.fixture
def write_page(monkeypatch, capsys):
    """Runs the script in this process: exit code and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["results.py", *map(str, arguments)])
        try:
            results.main()
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


def changed(values, **changes):
    """A copy with `section__key` replaced."""
    values = copy.deepcopy(values)
    for path, value in changes.items():
        *sections, key = path.split("__")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        target[key] = value
    return values


def make_metrics(seed=0, accuracy=0.0):
    metrics = {**METRICS, "seed": seed, "task": {**TASK, "dataset": "/home/somebody/images"}}
    metrics |= {"hardware": HARDWARE, "date": f"2026-01-0{seed + 1}", "versions": {"torch": "2.9.0"}}
    metrics |= {"timings_s": TIMES, "peak_rss_mb": dict.fromkeys(TIMES, 1000.0 + seed)}
    mean = METRICS["groups"]["generated"]["test_accuracy"]["mean"] + accuracy
    return changed(metrics, groups__generated__test_accuracy__mean=mean)


def make_run(folder, recipe=RECIPE, metrics=None):
    metrics = metrics or make_metrics(recipe["seed"])
    files = {
        "report/metrics.json": metrics,
        "run.json": {"schema": 1, "stages": {}},
        "autoencoder/reconstruction.json": {"explained_variance": 0.991, "accuracy_drop": 0.0004, "passed": True},
    }
    for name, values in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def make_seeds(folder, num=3):
    metrics = {seed: make_metrics(seed, accuracy=0.01 * seed) for seed in range(num)}
    for seed, values in metrics.items():
        make_run(folder / f"seed-{seed}", changed(RECIPE, seed=seed), values)
    together = aggregate_seeds({seed: Metrics.from_dict(values) for seed, values in metrics.items()})
    (folder / "report").mkdir()
    (folder / "report" / "metrics.json").write_text(json.dumps(together.to_dict()))
    return folder


RESNET = changed(
    RECIPE,
    task__dataset="/home/somebody/cifar10",
    base_model={"library": "timm", "name": "resnet18", "kwargs": {"num_classes": 10}},
    collect__select="last_norms:2",
)
CONVNET = changed(
    RECIPE,
    task__dataset="uoft-cs/cifar10",
    base_model__name="pdiff_hf.tasks.networks:convnet3",
    base_training__epochs=10,
    collect__num_checkpoints=300,
    autoencoder__preset="paper",
    diffusion__preset="paper",
    generate={"num_samples": 200, "scheduler": "ddpm", "num_inference_steps": 1000},
)


@pytest.fixture
def folders(tmp_path):
    old = make_metrics()
    # Runs of earlier versions know nothing of their machine.
    del old["hardware"], old["date"]
    return [
        make_seeds(tmp_path / "perceptron"),
        make_run(tmp_path / "convnet", CONVNET),
        make_run(tmp_path / "resnet", RESNET, old),
    ]


def test_page_is_the_golden_one(folders):
    check_golden("results.md", make_page(collect_results(folders)))


def test_page_does_not_depend_on_the_order_of_the_runs(folders):
    assert make_page(collect_results(folders)) == make_page(collect_results(folders[::-1]))


def test_nothing_of_this_machine_is_on_the_page(folders, tmp_path):
    results = collect_results(folders)
    for text in (make_page(results), json.dumps(results)):
        assert str(tmp_path) not in text and "somebody" not in text
    unknown = changed(RESNET, task__dataset="/home/somebody/my images")
    assert collect_results([make_run(tmp_path / "own", unknown)])[0]["dataset"] == "my images"


def test_seeds_are_one_row_with_intervals_over_seeds(folders):
    result = next(result for result in collect_results(folders) if result["seeds"] == [0, 1, 2])
    mean = METRICS["groups"]["generated"]["test_accuracy"]["mean"]
    group = result["groups"]["generated"]
    group = group["test_accuracy"]
    assert group["mean"] == pytest.approx(mean + 0.01)
    # Student's t of 0, 1 and 2 points.
    assert group["ci95"] == pytest.approx([mean + 0.01 - 0.024841, mean + 0.01 + 0.024841], abs=1e-5)
    assert result["peak_rss_mb"]["collect"] == 1001 and result["dates"] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    page = make_page(collect_results(folders))
    assert page.count("MLP-3, whole, digits") == 4  # three tables and a heading
    assert "| 0, 1, 2 |" in page and "2026-01-01 to 2026-01-03" in page


def test_cells_are_found_by_network_selection_and_data():
    assert find_cell(RESNET) == Cell("resnet18", "last_norms", "cifar10")
    assert find_cell(CONVNET) == Cell("convnet3", "all", "cifar10")
    assert find_cell(changed(RESNET, task__dataset="/data/CIFAR-10")).data == "cifar10"
    assert find_cell(changed(RESNET, base_model__name="resnet18.a1_in1k")).network == "resnet18"
    assert find_cell(changed(RESNET, base_model__name="resnet34", task__dataset="a/b")).network is None
    assert find_cell(changed(RESNET, collect__select=["layer4.*"])).selection is None


def test_every_cell_of_the_paper_is_run_or_named_with_its_command(folders):
    cells = paper_cells()
    assert len(cells) == len(set(cells)) == 6 * 8 + 5 * 2
    page = make_page(collect_results(folders))
    covered = {Cell("convnet3", "all", "cifar10"), Cell("resnet18", "last_norms", "cifar10")}
    for cell in cells:
        command = f"`pdiff run {cell.recipe} --preset paper --out runs/{cell.recipe}`"
        assert (command in page) == (cell not in covered), cell
    assert "Not run here" not in make_page(
        [{**r, "cell": vars(c)} for c in cells for r in collect_results(folders[1:2])]
    )


def test_commands_for_what_was_not_run_are_recipes():
    for cell in missing_cells([]):
        recipe = load_recipe(cell.recipe, preset="paper")
        assert find_cell(recipe.model_dump(mode="json")) == cell
        assert recipe.autoencoder.preset == recipe.diffusion.preset == "paper"


def test_numbers_of_the_paper():
    assert paper_numbers(Cell("resnet18", "last_norms", "cifar100")) == (0.774, 0.777, 0.779)
    assert paper_numbers(Cell("mlp3", "all", "cifar10")) == (0.418, 0.418, 0.424)
    assert paper_numbers(Cell("resnet18", "last_norms", "cifar10")) is None
    numbers = paper()["numbers"]
    assert sum(len(row) for rows in numbers.values() for row in rows.values()) == 6 * 6 + 5
    named = {Cell(n, s, d) for s, rows in numbers.items() for n, row in rows.items() for d in row}
    assert named <= set(paper_cells())


def test_what_differs_from_the_paper_is_said(folders):
    resnet, convnet, _ = collect_results(folders)
    assert resnet["paper"] is None and convnet["paper"]["generated"] == 0.558
    assert "1,000 of 50,000 training examples at 32×32 pixels" in resnet["differences"]
    assert "24 checkpoints instead of 300" in resnet["differences"]
    # With the paper's hyper-parameters only these are left.
    assert convnet["differences"] == [
        "1,000 of 50,000 training examples at 32×32 pixels",
        "base model trained for 10 epochs from scratch",
        "best networks chosen on val, not on the training examples",
    ]


@pytest.mark.parametrize("missing", ["report/metrics.json", "recipe.yaml"])
def test_unfinished_run_is_named(write_page, tmp_path, missing):
    run = make_run(tmp_path / "run")
    (run / missing).unlink()
    code, err = write_page(run, "--out", tmp_path / "results.md")
    assert code == 2 and f"found no {missing} there" in err
    assert "Traceback" not in err and not (tmp_path / "results.md").exists()


def test_folders_that_are_no_runs_are_left_out_and_named(write_page, tmp_path):
    """As in `runs/*`, where there are also datasets, ablations and runs that have not ended."""
    make_run(tmp_path / "run")
    (make_run(tmp_path / "begun") / "report" / "metrics.json").unlink()
    (tmp_path / "mine" / "dataset").mkdir(parents=True)
    page = tmp_path / "results.md"
    assert write_page(*(tmp_path / name for name in ("begun", "mine", "run")), "--out", page)[0] == 0
    assert page.read_text(encoding="utf-8") == make_page(collect_results([tmp_path / "run"]))


def test_run_given_twice_is_refused(folders):
    with pytest.raises(ValueError, match="expected every run once, found convnet 2 times"):
        collect_results([*folders, folders[1]])


def test_a_real_run_is_on_the_page(write_page, tiny_run, tmp_path):
    run = tiny_run
    metrics = read_json(run / "report" / "metrics.json")
    assert metrics["hardware"] == describe_hardware() and metrics["date"].startswith("20")
    page = tmp_path / "docs" / "results.md"
    code, err = write_page(run, "--out", page)
    assert code == 0, err
    result, text = collect_results([run])[0], page.read_text(encoding="utf-8")
    assert result["groups"]["generated"] == metrics["groups"]["generated"]
    assert result["reconstruction"]["explained_variance"] > 0.5 and result["timings_s"]["diffusion"] > 0
    mean = metrics["groups"]["generated"]["test_accuracy"]["mean"]
    low, high = metrics["groups"]["generated"]["test_accuracy"]["ci95"]
    assert f"{100 * mean:.2f} ({100 * low:.2f}–{100 * high:.2f})" in text
    assert metrics["verdict"] in text and str(tmp_path) not in text
