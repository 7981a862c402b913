import json
import shutil

import pytest
import torch
import yaml

from factories import TINY_RUN, make_dataset, tiny_recipe
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.files import read_json
from pdiff_hf.runs.evaluate import evaluate_run
from pdiff_hf.runs.folder import STAGES, Run, open_run
from pdiff_hf.runs.recipe import load_training
from pdiff_hf.runs.stages import run_recipe, train_stages

TINY_TRAINING = [override for override in TINY_RUN if override.startswith(("autoencoder", "diffusion"))]

UNET = "diffusion.kind=unet_1d"

pytestmark = pytest.mark.usefixtures("no_figures")


def modified(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_refused_autoencoder_may_be_trained_by_other_settings_without_collecting_again(tmp_path):
    trained = ["autoencoder.steps=3", "autoencoder.checkpointing_steps=2", "autoencoder.max_accuracy_drop=1.0"]
    with pytest.raises(ValueError, match="allow_poor_reconstruction"):
        run_recipe(tiny_recipe(*trained, "autoencoder.min_explained_variance=1.0"), tmp_path / "run")
    assert (tmp_path / "run" / "autoencoder" / "checkpoint-2").is_dir()
    collected = modified(tmp_path / "run" / "dataset")
    with pytest.raises(ValueError, match=r"collect\.num_checkpoints is 40, expected 21"):
        run_recipe(tiny_recipe(*trained, "collect.num_checkpoints=21"), tmp_path / "run")
    trained += ["autoencoder.latent_channels=6", "autoencoder.min_explained_variance=0.0"]
    changed = tiny_recipe(*trained, "diffusion.steps=2")
    assert run_recipe(changed, tmp_path / "run").generated.n == 5
    assert read_json(tmp_path / "run" / "autoencoder" / "config.json")["latent_channels"] == 6
    assert modified(tmp_path / "run" / "dataset") == collected
    with pytest.raises(ValueError, match=r"diffusion\.steps is 2, expected 20"):
        open_run(tiny_recipe(*trained), tmp_path / "run")


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_folder_of_a_version_without_kinds_of_denoisers_is_of_the_only_one_there_was(tmp_path, preset):
    before = [UNET, f"diffusion.preset={preset}", "autoencoder.latent_whitening=null"]
    values = tiny_recipe(*before).model_dump(mode="json")
    for section, keys in (
        ("autoencoder", ["latent_whitening"]),
        ("diffusion", ["kind", "stable_target", "validate", "validation_share"]),
    ):
        for key in keys:
            del values[section][key]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert open_run(tiny_recipe(*before), tmp_path).folder == tmp_path
    with pytest.raises(ValueError, match=r"latent_whitening is None, expected 0\.5"):
        open_run(tiny_recipe(*before[:2]), tmp_path)
    with pytest.raises(ValueError, match=r"diffusion.kind is 'unet_1d', expected 'unet_1d_condition'"):
        open_run(tiny_recipe("diffusion.kind=unet_1d_condition", *before[1:]), tmp_path)


def test_folder_of_a_version_that_could_align_networks_opens_where_it_did_not(tmp_path):
    values = tiny_recipe().model_dump(mode="json")
    file = tmp_path / "recipe.yaml"
    for align in ("none", "permutation"):
        file.write_text(yaml.safe_dump({**values, "collect": {**values["collect"], "align": align}}))
        if align == "none":
            assert open_run(tiny_recipe(), tmp_path).folder == tmp_path
        else:
            with pytest.raises(ValueError, match=r"holds another run: its collect\.align is 'permutation', expected"):
                open_run(tiny_recipe(), tmp_path)


def test_folder_of_a_version_without_a_key_goes_on_with_its_default(tiny_run_copy):
    file = tiny_run_copy / "recipe.yaml"
    values = yaml.safe_load(file.read_text())
    del values["evaluate"]["max_cache_mb"]
    file.write_text(yaml.safe_dump(values))
    trained = modified(tiny_run_copy / "autoencoder")
    lines = []
    run_recipe(tiny_recipe(), tiny_run_copy, lines.append)
    assert all("skipped" in line for line in lines) and modified(tiny_run_copy / "autoencoder") == trained
    with pytest.raises(ValueError, match=r"its evaluate.max_cache_mb is 2048, expected 1"):
        open_run(tiny_recipe("evaluate.max_cache_mb=1"), tiny_run_copy)


def test_stage_that_runs_again_takes_later_stages_along(tiny_run_copy):
    (tiny_run_copy / "dataset").rename(tiny_run_copy.parent / "dataset")
    lines = []
    run_recipe(tiny_recipe(), tiny_run_copy, lines.append)
    begun = [stage for line in lines if (stage := line.partition(":")[0]) in STAGES]
    assert list(dict.fromkeys(begun)) == [
        stage for stage in STAGES if stage != "fine_tune"
    ] and "skipped" not in "".join(lines)


def test_fine_tuning_is_added_to_a_finished_run_and_nothing_else_is_made_again(tiny_run_copy, pdiff):
    before = read_json(tiny_run_copy / "report" / "metrics.json")
    assert "fine_tuned" not in before["groups"]
    assert "fine-tuning for as long as the generator took" in (tiny_run_copy / "report" / "report.md").read_text()
    trained = [modified(tiny_run_copy / name) for name in ("dataset", "autoencoder", "pipeline", "generated")]
    code, out, err = pdiff("evaluate", tiny_run_copy, "--fine-tune")
    assert code == 0 and "fine_tuned" in out, err
    after = read_json(tiny_run_copy / "report" / "metrics.json")
    assert after["groups"].keys() - before["groups"].keys() == {"fine_tuned"}
    for name, group in before["groups"].items():
        assert after["groups"][name]["test_accuracy"] == group["test_accuracy"]
    assert "was left out" not in (tiny_run_copy / "report" / "report.md").read_text()
    assert [modified(tiny_run_copy / name) for name in ("dataset", "autoencoder", "pipeline", "generated")] == trained
    assert list(after["timings_s"]) == list(STAGES)
    # What is there is shown from then on, and the run stays complete.
    code, out, _ = pdiff("evaluate", tiny_run_copy)
    assert code == 0 and "fine_tuned" in out
    lines = []
    run_recipe(tiny_recipe(), tiny_run_copy, lines.append)
    assert all("skipped" in line for line in lines)


def test_fine_tuning_needs_the_runs_own_generator(tiny_run_copy, pdiff):
    code, _, err = pdiff("evaluate", tiny_run_copy, "--fine-tune", "--generated", tiny_run_copy / "generated")
    assert code == 2 and "--fine-tune takes the time that the run's own generator took" in err


def test_stage_that_stops_midway_is_not_complete_although_an_earlier_run_of_it_was(tiny_run_copy):
    def stop(folder):
        folder.mkdir()
        (tiny_run_copy / "pipeline").mkdir()
        raise KeyboardInterrupt

    shutil.rmtree(tiny_run_copy / "autoencoder")
    with pytest.raises(KeyboardInterrupt):
        Run(tiny_run_copy).do("autoencoder", stop, print)
    run = Run(tiny_run_copy)
    assert [stage for stage in STAGES if run.is_complete(stage)] == ["collect"]


def test_dataset_that_was_not_noted_before_a_crash_is_not_collected_again(tiny_run_copy):
    state = json.loads((tiny_run_copy / "run.json").read_text())
    (tiny_run_copy / "run.json").write_text(json.dumps(state | {"stages": {}}))
    collected = modified(tiny_run_copy / "dataset")
    run_recipe(tiny_recipe(), tiny_run_copy)
    assert modified(tiny_run_copy / "dataset") == collected
    assert list(Run(tiny_run_copy).stages) == [stage for stage in STAGES if stage not in ("collect", "fine_tune")]


def test_costs_of_earlier_stages_are_reported_after_a_resume(tiny_run_copy):
    costs = Run(tiny_run_copy).stages
    shutil.rmtree(tiny_run_copy / "generated")
    metrics = run_recipe(tiny_recipe(), tiny_run_copy)
    for stage in ("collect", "autoencoder", "diffusion"):
        assert metrics.timings_s[stage] == costs[stage]["seconds"]
        assert metrics.peak_rss_mb[stage] == costs[stage]["peak_rss_mb"]
    # A CPU has no memory of its own.
    assert metrics.peak_device_mb == {} and "peak_device_mb" not in costs["autoencoder"]
    assert "| evaluate |" in (tiny_run_copy / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["collect.select=conv*"], "conv"),
        (["base_model.kwargs.num_classes=11"], r"10 classes, found .*gives \(11,\) logits; give num_classes=10 to"),
        (["base_model.kwargs.in_features=49"], r"takes images \(1, 8, 8\), found pdiff_hf.tasks.networks:mlp3"),
        (["base_model.kwargs.colour=red"], "colour"),
        (["base_model.name=os:getcwd"], "os"),
        (["collect.num_checkpoints=9"], "8 latent values need at least 9 training checkpoints, got 8"),
        (["collect.num_checkpoints=5", "autoencoder.holdout_every=10"], "at least 6 checkpoints"),
        (["collect.num_checkpoints=2"], "at least 3 checkpoints to learn from, found 2"),
        (
            [UNET, "autoencoder.latent_length=3", "autoencoder.latent_channels=2"],
            "latent_length must be divisible by 2",
        ),
        ([UNET, "diffusion.block_out_channels=[12]"], "divisible by 8"),
        (["collect.num_checkpoints=10"], "8 latent values needs at least 9 checkpoints to train on, found 8 without"),
        (["diffusion.validate=run"], "validate=run with a share of 0.125 leaves none of 36 checkpoints in 1 run"),
        (["diffusion.validation_share=0.99"], "validate=between with a share of 0.99 leaves none of 36 checkpoints"),
    ],
)
def test_what_can_be_known_before_training_leaves_no_trace(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        run_recipe(tiny_recipe(*overrides), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def train(dataset, folder, overrides=TINY_TRAINING, trusted_imports=(), **options):
    opened = ParameterDataset(dataset, trusted_imports=trusted_imports)
    return train_stages(load_training(dataset, overrides), opened, folder, **options)


def test_base_model_of_a_trusted_module_goes_all_the_way(tmp_path, monkeypatch):
    code = "from pdiff_hf.networks import mlp3\n\n\ndef make():\n    return mlp3(64, (8,), 10)\n"
    (tmp_path / "my_networks.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    own = ["base_model.name=my_networks:make", "base_model.kwargs={}", "autoencoder.max_accuracy_drop=1.0"]
    with pytest.raises(ValueError, match="my_networks"):
        run_recipe(tiny_recipe(*own), tmp_path / "run")
    run_recipe(tiny_recipe(*own, "base_model.trusted_imports=[my_networks]"), tmp_path / "run")
    with pytest.raises(ValueError, match="my_networks"):
        train(tmp_path / "run" / "dataset", tmp_path / "again")
    train(tmp_path / "run" / "dataset", tmp_path / "again", trusted_imports=["my_networks"])


def test_training_of_other_settings_in_the_folder_is_refused(tmp_path):
    dataset = make_dataset(tmp_path)
    train(dataset, tmp_path / "run")
    before = modified(tmp_path)
    with pytest.raises(ValueError, match=r"autoencoder\.latent_channels is 4, expected 5"):
        train(dataset, tmp_path / "run", [*TINY_TRAINING, "autoencoder.latent_channels=5"])
    lines = []
    train(dataset, tmp_path / "run", report=lines.append)
    assert len(lines) == 2 and all("skipped" in line for line in lines)
    assert modified(tmp_path) == before


def test_damaged_base_weights_are_noticed_before_training(tmp_path):
    dataset = make_dataset(tmp_path)
    file = dataset / "base" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"base model: .*model\.safetensors"):
        train(dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_beside_its_dataset_replaces_nothing(tmp_path):
    dataset = make_dataset(tmp_path)
    (tmp_path / "pipeline").mkdir()
    before = modified(tmp_path)
    with pytest.raises(ValueError, match="holds pipeline but is no run of pdiff"):
        train(dataset, tmp_path)
    (tmp_path / "pipeline").rmdir()
    train(dataset, tmp_path)
    assert before.items() <= modified(tmp_path).items()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("dataset/stats.json", "[1]"),
        ("dataset/stats.json", '{"metadata": [1]}'),
        ("dataset/stats.json", '{"unordered_runs": 5}'),
        ("dataset/layout.json", "[1]"),
        ("run.json", "[1]"),
        ("run.json", '{"stages": 5}'),
        ("run.json", '{"stages": {"collect": [1]}}'),
        ("run.json", "{}"),
        ("autoencoder/reconstruction.json", "[1]"),
        ("pipeline/model_index.json", "[1]"),
        ("pipeline/model_index.json", "{}"),
        ("pipeline/autoencoder/config.json", "[]"),
        ("generated/index.json", "[1]"),
    ],
)
def test_json_of_another_shape_is_said_in_one_line(tiny_run_copy, pdiff, file, text):
    path = tiny_run_copy / file
    path.write_text(text)
    code, _, err = pdiff("info", path.parents[1] if "pipeline/autoencoder" in file else path.parent)
    assert code == 2 and err.startswith("Error: ") and err.count("\n") == 1


def test_report_does_not_replace_other_files(tiny_run, tmp_path):
    run = Run(tiny_run)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="earlier report"):
        evaluate_run(run, tiny_recipe().evaluate, output_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_peaks_on_an_accelerator_are_those_of_the_stage(pretended, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda device: 3 * 2**20)
    reset = []
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", reset.append)
    run = Run(tmp_path)
    for number, stage in enumerate(("autoencoder", "diffusion"), 1):
        run.do(stage, lambda path: path.mkdir(), print)
        assert len(reset) == number and run.stages[stage]["peak_device_mb"] == 3
