import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file

from factories import TINY_RUN, make_dataset, make_vectors
from pdiff_hf import ParameterRecorder, PDiffPipeline, disk_cache, exported, load_parameter_dataset
from pdiff_hf.runs.folder import STAGES
from processes import held_elsewhere
from small_datasets import rewrite

TINY = [*TINY_RUN, "evaluate.fine_tune=false"]
TINY_ZOO = [
    "base_training.epochs=1",
    "collect.runs=24",
    "autoencoder.steps=10",
    "autoencoder.lr_warmup_steps=0",
    "autoencoder.latent_channels=4",
    "autoencoder.allow_poor_reconstruction=true",
    "diffusion.steps=10",
    "diffusion.lr_warmup_steps=0",
    "generate.num_samples=5",
    "generate.num_inference_steps=5",
]
TRAINING = [override for override in TINY_RUN if override.startswith(("autoencoder", "diffusion"))]


def sets(overrides):
    return [argument for override in overrides for argument in ("--set", override)]


@pytest.fixture
def run(tiny_run):
    return tiny_run


def assert_one_line_error(result, *fragments):
    code, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("Error:")]
    assert code == 2, err
    assert len(lines) == 1 and "Traceback" not in err
    for fragment in fragments:
        assert fragment in lines[0]


def test_help_does_not_wait_for_torch():
    code = "import sys, pdiff_hf, pdiff_hf.cli; assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_run_prints_the_table_and_where_the_report_is(pdiff, tmp_path):
    code, out, err = pdiff("run", "digits-mlp", "--out", tmp_path / "run", *sets(TINY))
    assert code == 0, err
    assert "generated" in out and "uniform_soup" in out and str(tmp_path / "run" / "report" / "report.html") in out


@pytest.mark.usefixtures("no_figures")
def test_demo_ends_with_two_runs_side_by_side_and_goes_on_where_it_stopped(pdiff, tmp_path, monkeypatch):
    from pdiff_hf.cli import runs

    less = {"one training run": TINY, "independent runs": TINY_ZOO}
    demo = {name: (recipe, folder, [*given, *less[name]]) for name, (recipe, folder, given) in runs.DEMO.items()}
    monkeypatch.setattr(runs, "DEMO", demo)
    out = tmp_path / "demo"
    code, said, err = pdiff("demo", "--out", out)
    assert code == 0, err
    lines = said.splitlines()
    for name in ("one training run", "independent runs"):
        assert any(line.startswith(name) for line in lines) and f"{name[0].upper()}{name[1:]}. " in said
    reports = [out / "report" / "report.html", out / "independent" / "report" / "report.html"]
    assert all(str(report) in said and report.is_file() for report in reports)
    assert PDiffPipeline.from_pretrained(out / "pipeline").autoencoder.latent_shape == (4, 2)
    code, said, err = pdiff("demo", "--out", out, "--json")
    assert code == 0 and err.count("complete, skipped") == 10
    one, many = json.loads(said).values()
    assert "population" not in one and many["population"]["generated"]["n"] == 5


def test_json_is_for_machines_alone(pdiff, run):
    code, out, _ = pdiff("run", "digits-mlp", "--out", run, *sets(TINY), "--json")
    assert code == 0 and json.loads(out)["groups"]["generated"]["n"] == 5


@pytest.mark.usefixtures("no_figures")
def test_stages_one_by_one(pdiff, tmp_path):
    dataset = tmp_path / "run" / "dataset"
    assert pdiff("collect", "digits-mlp", "--out", dataset, *sets(TINY))[0] == 0
    assert pdiff("train", dataset, "--out", tmp_path / "run", *sets(TRAINING))[0] == 0
    options = ("--num-samples", 3, "--num-inference-steps", 2, "--scheduler", "ddim", "--truncation", 0.5)
    generated = tmp_path / "run" / "generated"
    assert pdiff("generate", tmp_path / "run" / "pipeline", "--out", generated, *options)[0] == 0
    index = json.loads((generated / "index.json").read_text())
    assert (index["scheduler"], index["truncation"], len(index["files"])) == ("ddim", 0.5, 3)
    code, out, err = pdiff("evaluate", tmp_path / "run")
    assert code == 0, err
    assert "uniform_soup" in out and (tmp_path / "run" / "report" / "metrics.json").is_file()


def test_same_seed_generates_the_same_files(pdiff, run, tmp_path):
    for name in ("a", "b"):
        assert pdiff("generate", run / "pipeline", "--out", tmp_path / name, "--num-samples", 2, "--seed", 5)[0] == 0
    for file in ("00000.safetensors", "00001.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    first, second = (load_file(tmp_path / "a" / f"0000{i}.safetensors") for i in (0, 1))
    assert not all(bool((first[name] == second[name]).all()) for name in first)


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("", "run"),
        ("dataset", "parameter dataset"),
        ("autoencoder", "autoencoder"),
        ("pipeline", "pipeline"),
        ("generated", "generated networks"),
        ("report", "report"),
    ],
)
def test_info_says_what_a_folder_is(pdiff, run, folder, kind):
    code, out, _ = pdiff("info", run / folder, "--json")
    assert code == 0 and json.loads(out)["kind"] == kind


def test_recipes_are_listed_with_the_parts_of_all_others(pdiff):
    code, out, _ = pdiff("recipes")
    assert code == 0
    for name in ("digits-mlp", "resnet18-last-norms", "vit_tiny", "27,827,818", "last_norms", "cifar10", "cpu-smoke"):
        assert name in out
    code, out, _ = pdiff("recipes", "--json")
    assert code == 0 and {"recipes", "networks", "selections", "data"} <= set(json.loads(out))


def test_a_recipe_is_shown_as_it_is_composed(pdiff, tmp_path):
    code, out, err = pdiff("recipes", "resnet18-last_norms-cifar10", "--profile", "cpu-smoke")
    assert code == 0, err
    shown = yaml.safe_load(out)
    assert (shown["base_model"]["name"], shown["collect"]["num_checkpoints"]) == ("resnet18", 12)
    # What is shown is a recipe itself.
    (tmp_path / "mine.yaml").write_text(out)
    code, again, _ = pdiff("recipes", tmp_path / "mine.yaml", "--json")
    assert code == 0 and json.loads(again) == shown
    assert_one_line_error(pdiff("recipes", "resnet18-last_norm-cifar10"), "'last_norm'", "'last_norms'")
    assert_one_line_error(pdiff("run", "digits-mlp", "--out", tmp_path / "run", "--preset", "papr"), "'paper'")


def test_smoke_profile_reaches_run_and_train(pdiff, tmp_path):
    out_dir = tmp_path / "run"
    code, out, err = pdiff("run", "digits-mlp", "--out", out_dir, "--profile", "cpu-smoke", "--json")
    assert code == 0, err
    assert json.loads(out)["groups"]["original"]["n"] == 12
    options = ("--preset", "paper", "--profile", "cpu-smoke", *sets(["autoencoder.steps=2", "diffusion.steps=2"]))
    code, _, err = pdiff("train", out_dir / "dataset", "--out", tmp_path / "trained", *options)
    assert code == 0, err
    recipe = yaml.safe_load((tmp_path / "trained" / "recipe.yaml").read_text())
    assert (recipe["autoencoder"]["preset"], recipe["autoencoder"]["latent_length"]) == ("paper", 2)


# Bad input: one line, exit code 2, nothing lost.


def test_unknown_key(pdiff, tmp_path):
    result = pdiff("run", "digits-mlp", "--out", tmp_path / "run", "--set", "diffusion.step=3")
    assert_one_line_error(result, "diffusion.step", "'diffusion.steps'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "message"), [("x" * 300, "File name too long; choose a shorter name"), ("file/out", "expected a folder")]
)
def test_an_output_folder_that_cannot_be(pdiff, tiny_run, tmp_path, name, message):
    (tmp_path / "file").touch()
    code, _, error = pdiff("generate", tiny_run / "pipeline", "--out", tmp_path / name)
    assert code == 2 and message in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_folder_that_another_program_writes_to(pdiff, tmp_path):
    (tmp_path / "run").mkdir()
    with held_elsewhere(tmp_path / "run"):
        code, _, error = pdiff("run", "digits-mlp", "--out", tmp_path / "run", *sets(TINY))
        assert code == 2 and "run is being written to by" in error
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize("again", ["diffusion.steps=4", "diffusion={steps: 4}"])
def test_a_key_that_is_set_twice(pdiff, again):
    code, _, error = pdiff("recipes", "digits-mlp", "--set", "diffusion.steps=3", "--set", again)
    assert code == 2 and f"diffusion.steps is set again by --set {again}; keep one" in " ".join(error.split())


def test_dataset_path_that_does_not_exist(pdiff, tmp_path):
    missing = tmp_path / "nowhere"
    result = pdiff("run", "digits-mlp", "--out", tmp_path / "run", "--set", f"task.dataset={missing}")
    assert_one_line_error(result, "nowhere")
    assert "correct --set task.dataset=…" in result[2]
    assert_one_line_error(pdiff("train", missing, "--out", tmp_path / "run"), "nowhere")
    assert_one_line_error(pdiff("generate", missing, "--out", tmp_path / "out"), "nowhere")
    assert_one_line_error(pdiff("info", missing), "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_fewer_checkpoints_than_the_latents_need(pdiff, tmp_path):
    latents = ["--set", "autoencoder.latent_channels=32"]
    result = pdiff("train", make_dataset(tmp_path), "--out", tmp_path / "run", *latents)
    assert_one_line_error(result, "32 latent values need at least 33 training checkpoints, got")


def test_nan_in_a_checkpoint(pdiff, tmp_path):
    dataset = make_dataset(tmp_path)
    shard = dataset / "data" / "train-00000.parquet"
    table = pq.read_table(shard)
    values = np.array(table.column("parameters").combine_chunks().flatten())
    values[3 * make_vectors().shape[1] + 5] = np.nan
    array = pa.FixedSizeListArray.from_arrays(pa.array(values), make_vectors().shape[1])
    rewrite(table.set_column(0, table.schema.field(0), array.cast(table.schema.field(0).type)), shard)
    assert_one_line_error(pdiff("train", dataset, "--out", tmp_path / "run", *sets(TRAINING)), "row 3", "1.weight")
    assert not (tmp_path / "run").exists()


def test_truncated_parquet(pdiff, tmp_path):
    dataset = make_dataset(tmp_path)
    shard = dataset / "data" / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert_one_line_error(pdiff("train", dataset, "--out", tmp_path / "run", *sets(TRAINING)), "train-00000.parquet")


def test_truncated_safetensors_of_the_base_model(pdiff, run, tmp_path):
    PDiffPipeline.from_pretrained(run / "pipeline").save_pretrained(tmp_path / "pipeline")
    shutil.copytree(run / "dataset", tmp_path / "dataset")
    weights = tmp_path / "dataset" / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    result = pdiff("evaluate", tmp_path, "--generated", run / "generated")
    assert_one_line_error(result, "model.safetensors")


@pytest.mark.parametrize("part", ["unet", "autoencoder"])
def test_truncated_safetensors_of_the_pipeline(pdiff, run, tmp_path, part):
    PDiffPipeline.from_pretrained(run / "pipeline").save_pretrained(tmp_path / "pipeline")
    weights = tmp_path / "pipeline" / part / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    result = pdiff("generate", tmp_path / "pipeline", "--out", tmp_path / "out")
    assert_one_line_error(result, str(tmp_path / "pipeline"))
    assert not (tmp_path / "out").exists()


def test_truncated_generated_network(pdiff, run, tmp_path):
    shutil.copytree(run / "generated", tmp_path / "generated")
    file = tmp_path / "generated" / "00001.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    before = (run / "report" / "metrics.json").read_bytes()
    assert_one_line_error(pdiff("evaluate", run, "--generated", tmp_path / "generated"), "00001.safetensors")
    assert (run / "report" / "metrics.json").read_bytes() == before


def test_layout_that_does_not_fit_the_model(pdiff, run, tmp_path):
    other = make_dataset(tmp_path)
    result = pdiff("evaluate", run, "--dataset", other, "--out", tmp_path / "report")
    assert_one_line_error(result, "belong to different networks: tensor")
    dataset, layout = load_parameter_dataset(other)
    with pytest.raises(ValueError, match="different networks"):
        ParameterRecorder(layout, run / "dataset").record(dataset[0]["parameters"], step=0)


def test_generate_does_not_overwrite(pdiff, run):
    before = {path: path.read_bytes() for path in (run / "generated").iterdir()}
    result = pdiff("generate", run / "pipeline", "--out", run / "generated", "--num-samples", 2)
    assert_one_line_error(result, "holds files")
    assert {path: path.read_bytes() for path in (run / "generated").iterdir()} == before


def test_another_run_in_the_folder(pdiff, run):
    assert_one_line_error(pdiff("run", "digits-convnet", "--out", run), "holds another run")


@pytest.mark.usefixtures("no_figures")
def test_seeds_make_a_run_each(pdiff, tmp_path):
    code, out, err = pdiff("run", "digits-mlp", "--seeds", 0, 2, "--out", tmp_path, *sets(TINY), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert list(found["seeds"]) == [str(tmp_path / "seed-0"), str(tmp_path / "seed-2")]
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == found["together"]
    accuracies = [metrics["groups"]["generated"]["test_accuracy"]["mean"] for metrics in found["seeds"].values()]
    assert found["together"]["groups"]["generated"]["test_accuracy"]["per_seed"] == accuracies
    assert "seeds 0, 2" in (tmp_path / "report" / "report.html").read_text()
    recipes = [yaml.safe_load((tmp_path / f"seed-{seed}" / "recipe.yaml").read_text()) for seed in (0, 2)]
    assert [recipe["seed"] for recipe in recipes] == [recipe["diffusion"]["seed"] for recipe in recipes] == [0, 2]
    assert_one_line_error(pdiff("run", "digits-mlp", "--seeds", 0, "--seed", 1, "--out", tmp_path), "--seed")


def test_brackets_of_a_message_are_printed(pdiff, run, tmp_path):
    folder = tmp_path / "[red]mine[/red]"
    assert_one_line_error(pdiff("info", folder), str(folder))
    code, out, _ = pdiff("generate", run / "pipeline", "--out", folder, "--num-samples", 1, "--num-inference-steps", 1)
    assert code == 0 and str(folder) in out


def test_evaluate_does_not_replace_other_files(pdiff, run, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    assert_one_line_error(pdiff("evaluate", run, "--out", tmp_path), "earlier report")
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_report_in_another_folder_shows_what_the_run_cost(pdiff, run, tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "_IN_MEMORY", type(exported._IN_MEMORY)())
    code, out, err = pdiff("evaluate", run, "--out", tmp_path / "report", "--json")
    assert code == 0, err
    assert list(json.loads(out)["timings_s"]) == [stage for stage in STAGES if stage != "fine_tune"]
    # The next command need not export the network.
    assert len(list(disk_cache.home_folder().iterdir())) == 1


def test_information_about_a_begun_run(pdiff, tmp_path):
    (tmp_path / "recipe.yaml").write_text("seed: 0")
    code, out, _ = pdiff("info", tmp_path, "--json")
    assert code == 0 and json.loads(out) == {"kind": "run", "complete": "", "seconds": 0}


def test_checkpoint_of_another_library_is_no_artefact(pdiff, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    assert_one_line_error(pdiff("info", tmp_path), "is no run")


def test_missing_option_is_bad_input(pdiff):
    code, _, err = pdiff("run", "digits-mlp")
    assert code == 2 and "--out" in err and "Traceback" not in err


@pytest.mark.parametrize("command", ["demo", "run", "collect", "train", "generate", "evaluate", "info", "recipes"])
def test_every_command_has_help(pdiff, command):
    code, out, _ = pdiff(command, "--help")
    assert code == 0 and command in out


def test_inspect_reports_and_advises(pdiff, run, tmp_path):
    code, out, err = pdiff("inspect", run / "dataset", "--json")
    assert code == 0, err
    assert json.loads(out)["functional"] is not None
    code, out, _ = pdiff("inspect", run / "dataset")
    assert code == 0 and "basin" in out and "advice" in out
    assert_one_line_error(pdiff("inspect", tmp_path), "layout.json")
