import json

import pytest
import torch
from safetensors.torch import load_file

from factories import LATENTS, make_autoencoder, make_dataset, make_vectors
from pdiff_hf import ParameterLayout, PDiffPipeline
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.files import write_json
from pdiff_hf.models.auto import AUTOENCODER
from pdiff_hf.models.kinds import AutoencoderPDiffConfig, UNet1DConfig
from pdiff_hf.networks import mlp3
from pdiff_hf.training import loop as training_loop
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.diffusion import train_diffusion
from pdiff_hf.training.gate import PoorReconstructionError

OPEN_GATE = {"min_explained_variance": -1e9, "max_accuracy_drop": 1.0}
SMALL_UNET = {"block_out_channels": (16, 16), "train_batch_size": 8, "lr_warmup_steps": 0}


def autoencoder_config(kind="pdiff", **options):
    steps = {"steps": 6, "train_batch_size": 8, "lr_warmup_steps": 0} if kind == "pdiff" else {}
    return AUTOENCODER.validate({"kind": kind, **steps, **LATENTS, **OPEN_GATE, **options})


def save_autoencoder(folder):
    make_autoencoder().save_pretrained(folder / "autoencoder")
    write_json(folder / "autoencoder" / "train_config.json", {"autoencoder": {"steps": 0}})
    return folder / "autoencoder"


def weights(folder):
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("kind", ["pdiff", "pca"])
def test_autoencoder_stage_writes_model_log_and_gate(tmp_path, kind):
    steps = {"steps": 20} if kind == "pdiff" else {}
    config = autoencoder_config(kind=kind, min_explained_variance=0.95, **steps)
    autoencoder, report = train_autoencoder(make_dataset(tmp_path), tmp_path / "autoencoder", config)
    assert report["passed"] and report["explained_variance"] > 0.95
    assert json.loads((tmp_path / "autoencoder" / "reconstruction.json").read_text()) == report
    assert not autoencoder.training
    assert autoencoder.config.scaling_factor != 1.0
    if kind == "pdiff":
        log = [json.loads(line) for line in (tmp_path / "autoencoder" / "train_log.jsonl").open()]
        assert [entry["step"] for entry in log] == [10, 20]


def test_gate_stops_a_poor_autoencoder_and_says_what_to_change(tmp_path):
    config = autoencoder_config(min_explained_variance=1.0)
    with pytest.raises(PoorReconstructionError, match=r"explains .* expected at least 100.0 %.*allow_poor"):
        train_autoencoder(make_dataset(tmp_path), tmp_path / "autoencoder", config)
    report = json.loads((tmp_path / "autoencoder" / "reconstruction.json").read_text())
    assert report["passed"] is False
    config = config.model_copy(update={"allow_poor_reconstruction": True})
    assert train_autoencoder(tmp_path / "dataset", tmp_path / "autoencoder", config)[1]["passed"] is False


def test_explained_variance_of_the_mean_is_zero(tmp_path):
    """A latent of pure noise decodes to the mean: nothing is explained."""
    from pdiff_hf.training.gate import measure_reconstruction

    autoencoder = make_autoencoder("pca")
    autoencoder.components.basis.zero_()
    report = measure_reconstruction(autoencoder, make_vectors(), make_vectors())
    assert report["explained_variance"] == pytest.approx(0, abs=1e-4)


def test_training_lowers_the_loss_of_a_plain_autoencoder(tmp_path):
    config = autoencoder_config(preset="paper", steps=60, learning_rate=1e-2)
    train_autoencoder(make_dataset(tmp_path), tmp_path / "autoencoder", config)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "autoencoder" / "train_log.jsonl").open()]
    assert losses[-1] < 0.7 * losses[0]


def test_diffusion_stage_writes_a_self_contained_pipeline(tmp_path):
    config = UNet1DConfig(steps=4, **SMALL_UNET)
    train_diffusion(make_dataset(tmp_path), save_autoencoder(tmp_path), tmp_path / "pipeline", config)
    for folder in ("dataset", "source"):
        (tmp_path / folder).rename(tmp_path / f"gone-{folder}")
    (tmp_path / "pipeline").rename(tmp_path / "moved")
    pipeline = PDiffPipeline.from_pretrained(tmp_path / "moved")
    model = pipeline.build_model(pipeline(num_inference_steps=2).parameters[0])
    assert model(torch.zeros(2, 1, 2, 2)).shape == (2, 3)
    trained_by = json.loads((tmp_path / "moved" / "train_config.json").read_text())
    assert trained_by["autoencoder"]["steps"] == 0 and trained_by["diffusion"]["steps"] == 4


def test_diffusion_learns_the_scale_of_the_latents(tmp_path):
    """Latents of the dataset have deviation 1 once scaled; samples of a trained denoiser do as well."""
    config = UNet1DConfig(steps=150, **{**SMALL_UNET, "train_batch_size": 32})
    pipeline = train_diffusion(make_dataset(tmp_path), save_autoencoder(tmp_path), tmp_path / "pipeline", config)
    generator = torch.Generator().manual_seed(0)
    latents = pipeline(batch_size=64, num_inference_steps=100, generator=generator, output_type="latent").parameters
    assert latents.std().item() == pytest.approx(1, abs=0.3)


def test_autoencoder_of_another_layout_is_refused(tmp_path):
    other = ParameterLayout.from_model(mlp3(in_features=4, hidden=(4, 4), num_classes=3), "head")
    vectors = make_vectors()[:, -other.num_parameters :]
    save_parameter_dataset(vectors, other, tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"different networks: tensor .*; give the dataset the autoencoder was trained on"
    ):
        train_diffusion(
            tmp_path / "other", save_autoencoder(tmp_path), tmp_path / "pipeline", UNet1DConfig(**SMALL_UNET)
        )


def test_too_few_rows_for_the_gate(tmp_path):
    with pytest.raises(ValueError, match="holds out every 10th checkpoint, but there are only 5"):
        train_autoencoder(make_dataset(tmp_path, 5), tmp_path / "autoencoder", autoencoder_config())


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch, stage):
    dataset = make_dataset(tmp_path)
    common = {"steps": 7, "checkpointing_steps": 2, "gradient_accumulation_steps": 2, "use_ema": True}

    def run(folder, resume=None):
        if stage == "autoencoder":
            train_autoencoder(dataset, tmp_path / folder, autoencoder_config(**common), resume_from_checkpoint=resume)
            return weights(tmp_path / folder)
        config = UNet1DConfig(**SMALL_UNET, **common)
        train_diffusion(dataset, save_autoencoder(tmp_path), tmp_path / folder, config, resume_from_checkpoint=resume)
        return weights(tmp_path / folder / "unet")

    expected = run("straight")

    # Stops in the middle of step 6, after the checkpoint of step 4.
    with monkeypatch.context() as patch:
        original = training_loop.GlobalBatch

        def killed(num_rows, batch_size, step, *args, **kwargs):
            if step == 5 and kwargs["micro_step"] == 1:
                raise _KilledError
            return original(num_rows, batch_size, step, *args, **kwargs)

        patch.setattr(training_loop, "GlobalBatch", killed)
        with pytest.raises(_KilledError):
            run("interrupted")
    assert (tmp_path / "interrupted" / "checkpoint-4").is_dir()
    assert_same_weights(run("interrupted", resume="latest"), expected)
    log = [(tmp_path / folder / "train_log.jsonl").read_text() for folder in ("straight", "interrupted")]
    assert log[0] == log[1]


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_checkpoints_of_other_data_are_refused(tmp_path, stage):
    dataset, longer = make_dataset(tmp_path), make_dataset(tmp_path / "longer", 32)
    options = {"steps": 3, "checkpointing_steps": 2}

    def train(dataset):
        where = {"output_dir": tmp_path / stage, "resume_from_checkpoint": "latest"}
        if stage == "autoencoder":
            return train_autoencoder(dataset, config=autoencoder_config(**options), **where)
        return train_diffusion(dataset, tmp_path / "first", config=UNet1DConfig(**SMALL_UNET, **options), **where)

    if stage == "diffusion":
        train_autoencoder(dataset, tmp_path / "first", autoencoder_config())
    train(dataset)
    before = (tmp_path / stage / "train_config.json").stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"checkpoint-2 was trained with other data: number of rows 24 is now 32; "):
        train(longer)
    if stage == "diffusion":
        train_autoencoder(dataset, tmp_path / "first", autoencoder_config(seed=1))
        with pytest.raises(ValueError, match=r"other data: autoencoder \w{12} is now \w{12}; put them back"):
            train(dataset)
    assert (tmp_path / stage / "train_config.json").stat().st_mtime_ns == before


def test_old_checkpoints_are_removed_and_partial_ones_ignored(tmp_path):
    config = autoencoder_config(checkpointing_steps=2, checkpoints_total_limit=1)
    (tmp_path / "autoencoder" / ".partial-checkpoint-100").mkdir(parents=True)
    train_autoencoder(make_dataset(tmp_path), tmp_path / "autoencoder", config, resume_from_checkpoint="latest")
    assert [path.name for path in (tmp_path / "autoencoder").glob("checkpoint-*")] == ["checkpoint-4"]


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="checkpoint-99 does not exist"):
        train_autoencoder(
            make_dataset(tmp_path),
            tmp_path / "autoencoder",
            autoencoder_config(),
            resume_from_checkpoint=str(tmp_path / "checkpoint-99"),
        )


def test_infinite_loss_stops_with_the_step(tmp_path):
    config = autoencoder_config(steps=20, preset="paper", learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(ValueError, match=r"at step 2; .* is none\. Lower the learning rate \(learning_rate\)"):
        train_autoencoder(make_dataset(tmp_path), tmp_path / "autoencoder", config)


def test_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    dataset = make_dataset(tmp_path)
    runs = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_autoencoder(dataset, tmp_path / name, autoencoder_config(seed=seed))
        runs[name] = weights(tmp_path / name)
    assert_same_weights(runs["a"], runs["b"])
    assert any(not torch.equal(runs["a"][name], runs["c"][name]) for name in runs["a"])


def test_preset_fills_only_what_is_not_given():
    config = AutoencoderPDiffConfig(preset="paper", learning_rate=1e-3)
    assert (config.steps, config.train_batch_size, config.learning_rate) == (500, 50, 1e-3)
    assert UNet1DConfig(preset="paper").prediction_type == "epsilon"
