"""A new autoencoder and a new denoiser are a class, a section and one line; the rest of the package knows them."""

import json
from typing import ClassVar, Literal

import pytest
import torch
import yaml
from diffusers import ConfigMixin, ModelMixin, UNet1DModel
from diffusers.configuration_utils import register_to_config
from pydantic import Field

import pdiff_hf
from factories import TINY_RUN
from pdiff_hf import AutoencoderPDiff, PDiffPipeline
from pdiff_hf.evaluation.inspection.inspect_dataset import inspect_dataset
from pdiff_hf.models.auto import AUTOENCODERS, DENOISERS, load_autoencoder
from pdiff_hf.models.autoencoder_base import ParameterAutoencoderMixin
from pdiff_hf.models.config import AutoencoderConfig, DiffusionConfig, OptimizationConfig
from pdiff_hf.models.kinds import UNet1DConfig
from pdiff_hf.models.unet_1d import make_unet_1d
from pdiff_hf.runs.ablation.axes import parse_axes
from pdiff_hf.runs.ablation.plan import make_plan
from pdiff_hf.runs.folder import open_run
from pdiff_hf.runs.generate import generate_networks
from pdiff_hf.runs.recipe import load_recipe, load_training
from pdiff_hf.runs.stages import run_recipe


class AutoencoderMine(ParameterAutoencoderMixin, ModelMixin, ConfigMixin):
    """One dense layer each way, trained by steps."""

    @register_to_config
    def __init__(
        self,
        num_parameters: int | None = None,
        layout: dict | None = None,
        normalization: str = "per_parameter",
        latent_channels: int = 4,
        latent_length: int = 2,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ):
        super().__init__()
        self._init_common()
        self.encoder = torch.nn.Linear(self.vector_length, latent_channels * latent_length)
        self.decoder = torch.nn.Linear(latent_channels * latent_length, self.vector_length)

    def _encode(self, normalized):
        return self.encoder(normalized)

    def _decode(self, latents):
        return self.decoder(latents)

    def forward(self, sample, input_noise=None, latent_noise=None, return_dict=True, loss_only=False):
        output = super().forward(sample, return_dict)
        return output.loss if loss_only else output


class MineConfig(AutoencoderConfig, OptimizationConfig):
    """Its section, with a key of its own."""

    builds: ClassVar = AutoencoderMine
    PRESETS: ClassVar = {
        name: {"steps": 200, "train_batch_size": 16, "learning_rate": 1e-2, "weight_decay": 0.0, "lr_warmup_steps": 0}
        for name in ("fast", "paper")
    }

    kind: Literal["mine"] = "mine"
    latent_channels: int = Field(4, ge=1)
    latent_length: int = Field(2, ge=1)
    temper: float = Field(1.0, description="nobody else has it")

    def build(self, layout):
        return AutoencoderMine(layout=layout, **self.options("normalization", "latent_channels", "latent_length"))


class DenoiserMineConfig(DiffusionConfig):
    """A denoiser of one resolution."""

    builds: ClassVar = UNet1DModel
    PRESETS: ClassVar = UNet1DConfig.PRESETS | {
        name: {key: value for key, value in preset.items() if key != "block_out_channels"}
        for name, preset in UNet1DConfig.PRESETS.items()
    }

    kind: Literal["one"] = "one"
    width: int = Field(16, ge=8)

    def build(self, latent_shape):
        return make_unet_1d(*latent_shape, (self.width,))


@pytest.fixture
def registered(monkeypatch):
    # The line.
    monkeypatch.setitem(AUTOENCODERS, "mine", MineConfig)
    monkeypatch.setitem(DENOISERS, "one", DenoiserMineConfig)


MINE = [
    *(text for text in TINY_RUN if not text.startswith(("autoencoder.steps", "diffusion.block"))),
    "autoencoder.kind=mine",
    "autoencoder.min_explained_variance=0.05",
    "autoencoder.max_accuracy_drop=0.9",
    "diffusion.kind=one",
    "evaluate.fine_tune=false",
]


def test_registered_kinds_run_from_recipe_to_report(registered, tmp_path):
    recipe = load_recipe("digits-mlp", MINE)
    assert isinstance(recipe.autoencoder, MineConfig) and isinstance(recipe.diffusion, DenoiserMineConfig)
    metrics = run_recipe(recipe, tmp_path / "run")
    # 1. Training and gate
    gate = json.loads((tmp_path / "run" / "autoencoder" / "reconstruction.json").read_text())
    assert gate["passed"] and gate["explained_variance"] > 0.05
    assert (tmp_path / "run" / "autoencoder" / "train_log.jsonl").is_file()
    assert isinstance(load_autoencoder(tmp_path / "run" / "autoencoder"), AutoencoderMine)
    # 2. Report
    assert metrics.groups["generated"].n == metrics.groups["reconstructed"].n == 5
    assert "generated" in (tmp_path / "run" / "report" / "report.md").read_text()
    # 3. Pipeline, saved and loaded
    pipeline = PDiffPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert isinstance(pipeline.autoencoder, AutoencoderMine) and pipeline.unet.config.block_out_channels == [16]
    pipeline.save_pretrained(tmp_path / "again")
    again = PDiffPipeline.from_pretrained(tmp_path / "again")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again.autoencoder.decoder.weight, pipeline.autoencoder.decoder.weight)
    generate_networks(again, tmp_path / "networks", num_samples=2, num_inference_steps=2)
    assert len(list((tmp_path / "networks").glob("*.safetensors"))) == 2
    # 4. The run goes on as what it is
    lines = []
    run_recipe(recipe, tmp_path / "run", lines.append)
    assert all("skipped" in line for line in lines)
    # 5. Inspection
    assert inspect_dataset(tmp_path / "run" / "dataset", device="cpu")["autoencoders"]["mine"]["seconds"] > 0


def test_registered_kind_is_a_value_of_the_ablation_axis(registered):
    plan = make_plan("digits-mlp", parse_axes(["autoencoder=pdiff,mine,none"]), ["autoencoder.input_noise=0.5"])
    kinds = [point.recipes[None].autoencoder.kind for point in plan.points]
    assert kinds == ["pdiff", "mine", "none"] and plan.points[0].recipes[None].autoencoder.input_noise == 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["autoencoder.kind=mine", "autoencoder.tempr=2"], "'autoencoder.tempr'; .* 'autoencoder.temper'"),
        (["autoencoder.kind=mine", "autoencoder.latent_noise=0"], "'autoencoder.latent_noise' of kind 'mine'"),
        (["autoencoder.temper=2"], "'autoencoder.temper' of kind 'pdiff'; the nearest valid key is 'autoencoder.*"),
        (["autoencoder.kind=pca", "autoencoder.learning_rate=1"], "unknown key 'autoencoder.learning_rate' of kind"),
        (["autoencoder.kind=none", "autoencoder.latent_length=8"], "nearest valid key is '.*latent_whitening'"),
        (["autoencoder.kind=mime"], "'autoencoder.kind': expected one of 'pdiff', .* or 'mine', found 'mime'"),
        (["diffusion.kind=one", "diffusion.layers_per_block=2"], "unknown key 'diffusion.layers_per_block' of kind"),
    ],
)
def test_key_that_the_kind_has_not_is_one_line_with_the_nearest(registered, tmp_path, overrides, message):
    for load, source in ((load_recipe, "digits-mlp"), (load_training, tmp_path)):
        with pytest.raises(ValueError, match=message) as caught:
            load(source, overrides)
        assert "\n" not in str(caught.value)


def test_own_file_with_a_key_that_the_kind_has_not_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("compose: [mlp3, all, digits]\nautoencoder: {kind: pca, steps: 5}\n")
    with pytest.raises(ValueError, match=r"unknown key 'autoencoder.steps' of kind 'pca'"):
        load_recipe(tmp_path / "mine.yaml")


def test_recorded_recipe_of_0_1_with_keys_of_other_kinds_goes_on(tmp_path):
    recipe = load_recipe(
        "digits-mlp", ["autoencoder.kind=pca", "autoencoder.latent_whitening=null", "diffusion.kind=unet_1d"]
    )
    values = recipe.model_dump(mode="json")
    values["autoencoder"] |= {"steps": 100, "learning_rate": 3e-4, "use_ema": False, "input_noise": 1e-3}
    del values["diffusion"]["kind"], values["autoencoder"]["latent_whitening"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert open_run(recipe, tmp_path).folder == tmp_path
    with pytest.raises(ValueError, match=r"autoencoder.kind is 'pca', expected 'none'"):
        open_run(load_recipe("digits-mlp", ["autoencoder.kind=none"]), tmp_path)


@pytest.mark.parametrize("kind", ["pdiff", "pca", "none"])
def test_presets_and_profiles_fit_every_kind(kind):
    overrides = [f"autoencoder.kind={kind}"]
    section = load_recipe("resnet18-last_norms-cifar10", overrides, preset="paper", profile="cpu-smoke").autoencoder
    assert (section.kind, section.preset, section.latent_channels) == (kind, "paper", 4)


def test_paper_is_the_same_from_the_command_the_section_and_the_model():
    composed = load_recipe("resnet18-last_norms-cifar10", preset="paper")
    alone = AUTOENCODERS["pdiff"](preset="paper"), DENOISERS["unet_1d"](preset="paper")
    assert (composed.autoencoder, composed.diffusion) == alone
    assert (alone[1].use_ema, alone[1].latent_noise, alone[1].prediction_type) == (False, 0.0, "epsilon")
    model = AutoencoderPDiff.from_preset("paper", num_parameters=2048)
    assert model.latent_shape == (alone[0].latent_channels, alone[0].latent_length) == (1, 128)
    assert (model.config.input_noise, model.config.latent_noise) == (alone[0].input_noise, alone[0].latent_noise)


def test_public_names_are_those_of_the_table():
    own = {section.model_class().__name__ for section in AUTOENCODERS.values()}
    assert own <= set(pdiff_hf.__all__) and all(getattr(pdiff_hf, name).__name__ == name for name in own)
    with pytest.raises(AttributeError, match="AutoencoderNobody"):
        _ = pdiff_hf.AutoencoderNobody
