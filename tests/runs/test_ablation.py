import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from scipy import stats

from factories import TINY_RUN, make_autoencoder, make_dataset, make_pipeline, without_figures
from pdiff_hf.data.dataset import ParameterDataset, load_parameter_dataset
from pdiff_hf.data.vectors import dataset_vectors
from pdiff_hf.files import read_json
from pdiff_hf.pipelines.network_folder import load_generated
from pdiff_hf.report.plots.ablation import plot_ablation
from pdiff_hf.results.text import MISSING
from pdiff_hf.runs.ablation.axes import axis_changes, current_value, parse_axes
from pdiff_hf.runs.ablation.execute import execute, launcher_free, problem_in
from pdiff_hf.runs.ablation.plan import definition, make_jobs, make_plan, open_ablation
from pdiff_hf.runs.ablation.results import (
    collect_results,
    make_tables,
    make_terminal_table,
    memorisation,
    write_results,
)
from pdiff_hf.runs.ablation.share import begin_job, place_base_model, train_shared_base_model
from pdiff_hf.runs.generate import generate_networks
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import collect, run_recipe
from pdiff_hf.tasks.collect import partial_folder
from processes import launch_two

QUICK = [*TINY_RUN, "evaluate.fine_tune=false"]


def plan_of(*axes, overrides=QUICK, **options):
    return make_plan("digits-mlp", parse_axes(axes), overrides, **options)


def student_interval(values):
    return stats.t.interval(0.95, len(values) - 1, sum(values) / len(values), stats.sem(values))


def vectors_of(folder):
    return dataset_vectors(*load_parameter_dataset(folder))


class InThisProcess:
    """Runs what an ablation starts here, as its commands would, and remembers it."""

    def __init__(self):
        self.commands = []

    def __call__(self, arguments, log):
        self.commands.append([Path(argument).name for argument in arguments])
        try:
            if arguments[0] == "pdiff_hf.runs.ablation.share":
                train_shared_base_model(*arguments[1:])
            elif arguments[1] == "collect":
                collect(load_recipe(arguments[2]), Path(arguments[4]))
            else:
                run_recipe(load_recipe(arguments[2]), arguments[4])
        except ValueError as error:
            log.write_text(f"collect: 1 s\nError: {error}\n")
            return 2, 100.0
        return 0, 100.0


# Axes


@pytest.mark.parametrize(
    ("axis", "value", "changes"),
    [
        ("num_checkpoints", "400", {"collect.num_checkpoints": 400}),
        ("num_checkpoints", "10", {"collect.num_checkpoints": 10, "autoencoder.latent_channels": 7}),
        ("noise", "both", {}),
        ("noise", "input", {"autoencoder.latent_noise": 0.0, "diffusion.latent_noise": 0.0}),
        ("noise", "latent", {"autoencoder.input_noise": 0.0}),
        ("timesteps", "10", {"diffusion.num_train_timesteps": 10, "generate.num_inference_steps": 10}),
        ("timesteps", "100", {"diffusion.num_train_timesteps": 100}),
        ("layer", "fc", {"collect.select": "head"}),
        ("layer", "bn14-15", {"collect.select": "${bn14_15}"}),
        ("layer", "[a.*, b.*]", {"collect.select": ["a.*", "b.*"]}),
        ("sampling", "vae", {"generate.sampler": "gaussian_latents"}),
        ("optimizer", "sgd", {"collect.optimizer": "sgd"}),
        ("autoencoder", "pca", {"autoencoder.kind": "pca"}),
        ("autoencoder", "none", {"autoencoder.kind": "none", "diffusion.kind": "unet_1d"}),
        ("diffusion.block_out_channels", "[16, 16]", {"diffusion.block_out_channels": [16, 16]}),
    ],
)
def test_values_of_axes_are_keys_of_the_recipe(axis, value, changes):
    assert axis_changes(axis, value, load_recipe("digits-mlp")) == changes


def test_noise_that_the_recipe_lacks_is_the_papers():
    silent = ["autoencoder.input_noise=0", "autoencoder.latent_noise=0"]
    assert current_value("noise", load_recipe("digits-mlp", [*silent, "diffusion.latent_noise=0"])) == "none"
    recipe = load_recipe("digits-mlp", silent)
    assert current_value("noise", recipe) == "latent", "the denoiser's own is still there"
    assert axis_changes("noise", "input", recipe) == {"autoencoder.input_noise": 1e-3, "diffusion.latent_noise": 0.0}
    found = axis_changes("noise", "both", recipe)
    assert found == {"autoencoder.input_noise": 1e-3, "autoencoder.latent_noise": 0.1}


def test_layers_of_the_paper_are_found_in_a_network_that_names_them():
    plan = make_plan("resnet18-last_norms-cifar10", {"layer": ["first_conv", "fc", "bn14-15"]})
    found = [next(iter(point.recipes.values())).collect.select for point in plan.points]
    assert found[:3] == ["last_norms:2", "conv1.weight", "head"]
    assert found[3].startswith("layer4.0.bn")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--axis", "nois=none"], "unknown axis 'nois'; the nearest valid one is 'noise'"),
        (["--axis", "diffusion.step=3"], "unknown key 'diffusion.step'; the nearest valid key is 'diffusion.steps'"),
        (["--axis", "noise"], "expected NAME=VALUE,VALUE"),
        (["--axis", "noise=none,loud"], "expected one of none, input, latent, both, found 'loud'"),
        (["--axis", "timesteps=ten"], "expected a positive whole number, found 'ten'"),
        (["--axis", "diffusion.learning_rate=fast"], "key 'diffusion.learning_rate': expected a valid number"),
        (["--axis", "noise=none", "--axis", "noise=both"], "--axis noise is given twice"),
        (["--axis", "noise=none,none"], "value 'none' is given twice"),
        (["--axis", "seed=1,2"], "give --seeds 0 1 2"),
        (["--axis", "layer=first_conv"], "names no 'first_conv'"),
    ],
)
def test_bad_axes_are_one_line_and_leave_no_folder(pdiff, tmp_path, options, message):
    code, _, err = pdiff("ablate", "digits-mlp", *options, "--out", tmp_path / "out")
    assert code == 2 and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# Plan


def test_base_is_a_point_of_every_axis_and_run_once():
    plan = plan_of("num_checkpoints=20,30", "noise=none,both", "generate.truncation=0.5")
    assert [point.name for point in plan.points] == [
        "base",
        "num_checkpoints-20",
        "num_checkpoints-30",
        "noise-none",
        "truncation-0.5",
    ]
    assert plan.base == {"num_checkpoints": "40", "noise": "both", "generate.truncation": "1.0"}
    assert [point.name for _, point in plan.on_axis("num_checkpoints")][-1] == "base"
    assert [value for value, _ in plan.on_axis("generate.truncation")] == ["0.5", "1.0"], "numbers are sorted"


def test_grid_has_all_combinations():
    plan = plan_of("num_checkpoints=20", "noise=none,input", grid=True)
    assert len(plan.points) == 6 and len(make_jobs(plan)) == 6
    both = next(point for point in plan.points if point.name == "num_checkpoints-20_noise-input")
    assert both.changes.keys() >= {"collect.num_checkpoints", "autoencoder.latent_noise"}
    assert [point.name for _, point in plan.on_axis("noise")] == ["base", "noise-none", "noise-input"]


def test_jobs_take_from_others_what_is_the_same():
    axes = ["num_checkpoints=20,60", "timesteps=100", "sampling=vae", "optimizer=sgd", "noise=none"]
    jobs = {str(job.folder): job for job in make_jobs(plan_of(*axes))}
    sources = {
        name.removeprefix("points/"): {stage: job.point.name for stage, job in job.sources.items()}
        for name, job in jobs.items()
    }
    assert sources == {
        "num_checkpoints-60": {},
        "optimizer-sgd": {},
        "base": {"collect": "num_checkpoints-60"},
        "num_checkpoints-20": {"collect": "num_checkpoints-60"},
        "noise-none": {"collect": "base"},
        "timesteps-100": {"collect": "base", "autoencoder": "base"},
        "sampling-vae": {"collect": "base", "autoencoder": "base", "diffusion": "base"},
    }
    assert [jobs[f"points/{name}"].wave for name in ("num_checkpoints-60", "base", "sampling-vae")] == [0, 1, 2]


def test_every_seed_shares_with_its_own_runs_only():
    jobs = make_jobs(plan_of("timesteps=100", seeds=[3, 4]))
    assert [str(job.folder) for job in jobs[:2]] == ["points/base/seed-3", "points/base/seed-4"]
    assert all(job.sources["autoencoder"].seed == job.seed == job.recipe.seed for job in jobs[2:])


def test_collections_whose_first_rows_are_no_collection_are_not_shared():
    jobs = make_jobs(plan_of("num_checkpoints=20", overrides=[*QUICK, "collect.runs=2"]))
    assert all(not job.sources for job in jobs)


# What is shared


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collected")
    collect(load_recipe("digits-mlp", QUICK), folder / "dataset")
    return folder / "dataset"


def test_first_checkpoints_of_a_longer_collection_are_the_shorter_one_to_the_bit(collected, tmp_path):
    (longer, shorter) = make_jobs(plan_of("num_checkpoints=20"))
    run = begin_job(longer, tmp_path)
    shutil.copytree(collected, run.path("collect"))
    run.note("collect", {"seconds": 1.0, "peak_rss_mb": 2.0})
    run = begin_job(shorter, tmp_path)
    assert run.stages["collect"] == {"seconds": 1.0, "peak_rss_mb": 2.0}
    collect(shorter.recipe, tmp_path / "alone")
    assert torch.equal(vectors_of(run.path("collect")), vectors_of(tmp_path / "alone"))
    stats = [read_json(folder / "stats.json") for folder in (run.path("collect"), tmp_path / "alone")]
    assert stats[0]["metadata"]["collect"] == stats[1]["metadata"]["collect"]
    tables = [load_parameter_dataset(folder)[0] for folder in (run.path("collect"), tmp_path / "alone")]
    for column in ("step", "epoch", "train_loss", "test_accuracy"):
        assert tables[0][column][:].tolist() == tables[1][column][:].tolist()


def test_collection_from_a_placed_base_model_is_the_ordinary_one_to_the_bit(collected, tmp_path):
    recipe = load_recipe("digits-mlp", QUICK)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    train_shared_base_model(tmp_path / "recipe.yaml", tmp_path / "base")
    before = (tmp_path / "base" / "base" / "model.safetensors").stat().st_mtime_ns
    place_base_model(tmp_path / "base", partial_folder(tmp_path / "dataset"))
    collect(recipe, tmp_path / "dataset")
    assert torch.equal(vectors_of(tmp_path / "dataset"), vectors_of(collected))
    assert (tmp_path / "base" / "base" / "model.safetensors").stat().st_mtime_ns == before


# The whole way


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    """Five runs, one of which fails."""
    folder, launch = tmp_path_factory.mktemp("ablation") / "out", InThisProcess()
    plan = plan_of("num_checkpoints=2,20", "sampling=vae", "optimizer=sgd")
    lines = []
    with without_figures():
        execute(plan, folder, lines.append, launch)
    results = collect_results(plan, folder)
    return folder, plan, results, launch.commands, lines


def test_every_point_is_an_ordinary_run_and_what_is_shared_is_done_once(ablation):
    folder, plan, results, commands, _ = ablation
    complete = {name for name, point in results["points"].items() if point["status"] == "complete"}
    assert complete == {"base", "num_checkpoints-20", "sampling-vae", "optimizer-sgd"}
    done = [command[:2] for command in commands]
    assert done.count(["pdiff_hf", "collect"]) == 2, "adamw and sgd"
    assert len([command for command in commands if command[0] == "pdiff_hf.runs.ablation.share"]) == 1
    for point in plan.points:
        # The same recipe finds its own run.
        own = folder / "points" / point.name
        assert yaml.safe_load((own / "recipe.yaml").read_text()) == point.recipes[None].model_dump(mode="json")
    weights = [
        (folder / "points" / name / "dataset" / "base" / "model.safetensors").read_bytes()
        for name in ("base", "optimizer-sgd", "num_checkpoints-2")
    ]
    assert weights[0] == weights[1] == weights[2]
    unets = [
        (folder / "points" / name / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
        for name in ("base", "sampling-vae", "optimizer-sgd")
    ]
    assert unets[0] == unets[1] != unets[2]
    seconds = [results["points"][name]["seconds"]["diffusion"] for name in ("base", "sampling-vae")]
    assert seconds[0] == seconds[1], "what it cost where it was made"


def test_failed_point_is_a_row_with_its_reason(ablation):
    _, _, results, _, lines = ablation
    failed = results["points"]["num_checkpoints-2"]
    assert failed["status"] == "failed" and "holds out every 10th checkpoint" in failed["problem"]
    assert any("num_checkpoints-2" in line and "holds out" in line for line in lines)
    row = next(row for row in make_tables(results)[0].rows if row[0] == "2")
    assert row[1] == "failed"


def test_numbers_are_those_of_the_runs(ablation):
    folder, _, results, _, _ = ablation
    for name in ("base", "optimizer-sgd"):
        point = results["points"][name]
        assert point["groups"] == read_json(folder / "points" / name / "report" / "metrics.json")["groups"]
        assert {"original", "generated", "uniform_soup", "average_16", "noise_0.05", "noise_0.1"} < set(
            point["groups"]
        )
        gate = read_json(folder / "points" / name / "autoencoder" / "reconstruction.json")
        assert point["explained_variance"] == gate["explained_variance"] < 1


def test_files_hold_every_axis(ablation, tmp_path):
    _, _, results, _, _ = ablation
    files = {file.name for file in write_results(results, tmp_path)}
    assert files == {
        "ablation.json",
        "ablation.md",
        "axis_num_checkpoints.png",
        "axis_sampling.png",
        "axis_optimizer.png",
        "memorisation.png",
    }
    assert json.loads((tmp_path / "ablation.json").read_text()) == results
    text = (tmp_path / "ablation.md").read_text()
    assert "| 40 (recipe) |" in text and "| 2 | failed |" in text and "- num_checkpoints-2: the gate" in text
    assert make_terminal_table(results).row_count == 3 + 3 * 2 + 1


def test_checkpoints_that_the_generator_was_not_given_are_a_group(ablation):
    folder, _, results, _, _ = ablation
    longer, point = vectors_of(folder / "points" / "base" / "dataset"), folder / "points" / "num_checkpoints-20"
    assert torch.equal(vectors_of(point / "dataset"), longer[:20])
    unseen = vectors_of(point / "unseen")
    rows = torch.linspace(20, 39, len(unseen)).round().long()
    assert len(unseen) == 5 and torch.equal(unseen, longer[rows])
    groups = read_json(point / "report" / "metrics.json")["groups"]
    assert groups["unseen"]["n"] == 5 and groups["unseen"]["similarity"]["l2_nearest_mean"] > 0
    assert results["points"]["num_checkpoints-20"]["groups"] == groups
    assert "unseen" not in results["points"]["base"]["groups"]


def test_memorisation_is_seen_along_the_axis_of_checkpoints(ablation):
    _, _, results, _, _ = ablation
    tables, _ = memorisation(results)
    assert [row[0] for row in tables[0].rows] == ["20", "40"] and "unseen" in tables[1].columns
    assert tables[1].rows[1][tables[1].columns.index("unseen")] == MISSING
    yardsticks = tables[2]
    for row, point in zip(yardsticks.rows, ("num_checkpoints-20", "base"), strict=True):
        own = results["points"][point]["groups"]["original"]["similarity"]
        yardstick = own["l2_independent_mean"]
        assert yardstick > own["l2_nearest_mean"], "neighbours of a trajectory are not independent"
        nearest = f"{own['l2_nearest_mean'] / yardstick:.3g} ("
        assert row[yardsticks.columns.index("original")].startswith(nearest)
        group = results["points"][point]["groups"]["generated"]["similarity"]
        nearest = f"{group['l2_nearest_mean'] / yardstick:.3g} ("
        assert row[yardsticks.columns.index("generated")].startswith(nearest)
    assert all("functions" not in table.title for table in tables), "nothing of one trajectory"
    zoo = json.loads(json.dumps(results))
    zoo["points"]["base"]["population"] = {"generated": {"near": 0.51, "side": 0.5, "copies": 0.25}}
    as_functions = memorisation(zoo)[0][1]
    assert "as functions" in as_functions.title
    assert as_functions.rows[0][1:] == (MISSING,) * 4 and as_functions.rows[1][1:4] == ("0.51", "0.50", "25")
    copying = json.loads(json.dumps(results))
    copying["points"]["num_checkpoints-20"]["groups"]["generated"]["novel_and_performant"]["copied"] = 1.0
    assert "100 % with 20 checkpoints" in memorisation(copying)[1].title
    copying["points"]["num_checkpoints-20"]["num_runs"] = 0
    assert memorisation(copying) is None


def test_complete_runs_are_skipped_and_failed_ones_tried_again(ablation):
    folder, plan, _, _, _ = ablation
    launch, lines = InThisProcess(), []
    execute(plan, folder, lines.append, launch)
    assert [command[:2] for command in launch.commands] == [["pdiff_hf", "run"]]
    assert sum("skipped, complete" in line for line in lines) == 4


def test_folder_goes_on_with_further_axes_of_the_same_recipe_only(ablation):
    folder, _, _, _, _ = ablation
    axes = open_ablation(plan_of("sampling=vae", "timesteps=100"), folder)
    assert axes["timesteps"] == ["100", "1000"] and axes["num_checkpoints"] == ["2", "20", "40"]
    with pytest.raises(ValueError, match=r"another ablation: its recipe\.diffusion\.steps is 20, expected 21"):
        open_ablation(plan_of("sampling=vae", overrides=[*QUICK, "diffusion.steps=21"]), folder)
    with pytest.raises(ValueError, match=r"another ablation: its seeds is \[\], expected \[0, 1\]"):
        open_ablation(plan_of("sampling=vae", seeds=[0, 1]), folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("axes", 5, "expected the axes with a list of texts each, found 5"),
        ("axes", {"timesteps": "100"}, "expected the axes with a list of texts each"),
        ("recipe", [1], r"expected sections such as 'task' and 'collect', found \[1\]"),
        ("recipe", {"collect": {"every": "x"}}, "key 'collect.every': expected a valid integer"),
    ],
)
def test_a_plan_that_was_edited_badly_is_named(tmp_path, key, value, message):
    plan = plan_of("timesteps=100")
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump({**definition(plan), key: value}))
    with pytest.raises(ValueError, match=rf"ablation\.yaml: {message}") as caught:
        open_ablation(plan, tmp_path)
    assert "\n" not in str(caught.value)


def test_folder_of_something_else_is_refused(pdiff, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    code, _, err = pdiff("ablate", "digits-mlp", "--axis", "noise=none", "--out", tmp_path)
    assert code == 2 and "holds thesis.txt but is no ablation" in err and len(err.splitlines()) == 1


def test_figure_names_what_is_far_below_and_does_not_squeeze_the_others(ablation):
    _, _, results, _, _ = ablation
    changed = json.loads(json.dumps(results))
    generated = changed["points"]["sampling-vae"]["groups"]["generated"]
    generated["test_accuracy"]["mean"], generated["selected"]["test_accuracy"] = 0.1, 0.12
    for narrow in (False, True):
        axes = plot_ablation("sampling", changed).draw(narrow).axes[0]
        assert axes.get_ylim()[0] > 50
        assert [text.get_text() for text in axes.texts] == ["▾ 10.0 %"]
    assert "10.00 % at vae" in plot_ablation("sampling", changed).title
    axes = plot_ablation("num_checkpoints", results).draw(False).axes[0]
    assert [text.get_text() for text in axes.texts] == ["failed"]


@pytest.mark.slow
def test_several_seeds_give_intervals_over_seeds(tmp_path):
    plan = plan_of("sampling=vae", seeds=[0, 1])
    execute(plan, tmp_path, launch=InThisProcess())
    results = collect_results(plan, tmp_path)
    point = results["points"]["sampling-vae"]
    generated = point["groups"]["generated"]
    assert point["num_runs"] == 2 and len(generated["difference_to_original"]["per_seed"]) == 2
    # Of five networks on 500 images the accuracies of two seeds may be equal; their losses are not.
    reports = [
        read_json(tmp_path / "points" / "sampling-vae" / f"seed-{seed}" / "report" / "metrics.json") for seed in (0, 1)
    ]
    nll = [report["groups"]["generated"]["test_nll"]["mean"] for report in reports]
    found = generated["test_nll"]
    assert found["per_seed"] == nll and nll[0] != nll[1]
    assert found["ci95"] == pytest.approx(student_interval(nll)) and found["mean"] == pytest.approx(sum(nll) / 2)
    shutil.rmtree(tmp_path / "points" / "base" / "seed-1" / "report")
    assert collect_results(plan, tmp_path)["points"]["base"]["status"] == "incomplete"


# Samplers and optimisers


def test_gaussian_latents_have_mean_and_deviation_of_the_encoded_dataset(tmp_path):
    dataset, pipeline = make_dataset(tmp_path), make_pipeline("pca")
    options = {"sampler": "gaussian_latents", "dataset": ParameterDataset(dataset), "num_samples": 2000}
    generate_networks(pipeline, tmp_path / "out", **options)
    autoencoder = make_autoencoder("pca")
    expected = autoencoder.encode_rows(vectors_of(dataset))
    found = autoencoder.encode_rows(load_generated(tmp_path / "out", pipeline.layout))
    # Standard error of a mean of 2000 draws is 0.022 deviations.
    assert ((found.mean(0) - expected.mean(0)).abs() < 0.1 * expected.std(0)).all()
    torch.testing.assert_close(found.std(0), expected.std(0), rtol=0.1, atol=0)
    assert read_json(tmp_path / "out" / "index.json")["sampler"] == "gaussian_latents"
    generate_networks(pipeline, tmp_path / "mean", truncation=0.0, **{**options, "num_samples": 2})
    at_mean = load_generated(tmp_path / "mean", pipeline.layout)
    decoded = autoencoder.decode(expected.mean(0, keepdim=True)).sample
    torch.testing.assert_close(at_mean, decoded.expand(2, -1), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="sampler must be one of"):
        generate_networks(pipeline, tmp_path / "other", sampler="gaussian_latents")


def test_optimizer_of_the_collection_is_the_one_named(collected, tmp_path):
    once = [
        "collect.num_checkpoints=2",
        "collect.burn_in=0",
        "autoencoder.holdout_every=2",
        "autoencoder.preset=paper",
        "diffusion.kind=unet_1d",
    ]
    steps = {}
    for name in ("sgd", "adam"):
        collect(load_recipe("digits-mlp", [*QUICK, *once, f"collect.optimizer={name}"]), tmp_path / name)
        steps[name] = vectors_of(tmp_path / name)
    rate = 3e-3
    # Adam's second step is of about the learning rate for every parameter that has a gradient, SGD's is its gradient.
    step = {name: (rows[1] - rows[0]).abs() for name, rows in steps.items()}
    assert step["adam"].quantile(0.9) > 0.5 * rate > step["sgd"].quantile(0.9) > 0


# Processes


def test_runs_see_nothing_of_a_launcher():
    launched = {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_RUN_ID": "none",
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_USE_CPU": "true",
        "HOME": "/home",
        "OMP_NUM_THREADS": "1",
    }
    assert launcher_free(launched) == {"ACCELERATE_USE_CPU": "true", "HOME": "/home", "OMP_NUM_THREADS": "1"}


def test_problem_is_what_the_command_said(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("base training: 3%\rbase training: 9%\nError: lower it.\nsomething\n")
    assert problem_in(log, 2) == "lower it."
    log.write_text("Traceback\nFloatingPointError: the loss is nan\n")
    assert problem_in(log, 1) == "FloatingPointError: the loss is nan"
    assert "signal 9, probably for want of memory" in problem_in(log, -9)
    assert problem_in(tmp_path / "none", 3) == "exit code 3"


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_share_the_runs(tmp_path):
    options = [option for override in QUICK for option in ("--set", override)]
    axes = ["--axis", "timesteps=100", "--axis", "autoencoder=none", "--axis", "num_checkpoints=20"]
    arguments = ["ablate", "digits-mlp", *options, *axes, "--out", tmp_path / "out", "--json"]
    code, out = launch_two("-m", "pdiff_hf", *arguments)
    assert code == 0, out
    assert out.count('"schema": 1') == 1, "one process speaks"
    results = read_json(tmp_path / "out" / "ablation.json")
    assert {point["status"] for point in results["points"].values()} == {"complete"}
    # Alone, a run is the same to the bit: it had no other process to share its batches with.
    recipe = make_plan("digits-mlp", {}, QUICK).points[0].recipes[None]
    run_recipe(recipe, tmp_path / "alone")
    name = "pipeline/unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "out" / "points" / "base" / name).read_bytes()
