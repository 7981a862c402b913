"""Small real objects that the tests share."""

from contextlib import contextmanager

import pytest
import torch
from diffusers import DDPMScheduler

from pdiff_hf import (
    AutoencoderPCA,
    AutoencoderPDiff,
    BaseModel,
    ConditionEncoder,
    ParameterLayout,
    PDiffPipeline,
    UNet1DConditionModel,
    make_unet_1d,
)
from pdiff_hf.conditions import ConditionSpec
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.networks import mlp3

NETWORK = {"in_features": 4, "hidden": (4, 4), "num_classes": 3}
LATENTS = {"latent_channels": 4, "latent_length": 2}

# Of diffusers', those that draw what a denoiser knows.
SERVED_SCHEDULERS = {
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
}

# Overrides that make a run of `digits-mlp` take seconds.
TINY_RUN = [
    "base_training.epochs=10",
    "collect.num_checkpoints=40",
    "autoencoder.steps=10",
    "autoencoder.latent_channels=4",
    "autoencoder.latent_length=2",
    "autoencoder.min_explained_variance=0.5",
    "autoencoder.max_accuracy_drop=0.1",
    "diffusion.steps=20",
    "diffusion.block_out_channels=[16, 16]",
    "diffusion.lr_warmup_steps=0",
    "generate.num_samples=5",
    "generate.num_inference_steps=5",
]

# The same of a zoo, `digits-runs`.
TINY_ZOO = [
    *(option for option in TINY_RUN if not option.startswith(("collect.", "base_training.", "autoencoder."))),
    "base_training.epochs=3",
    "base_model.kwargs={hidden: [8, 8]}",
    "collect.runs=12",
    "autoencoder.kind=pca",
    "autoencoder.latent_channels=2",
    "autoencoder.holdout_every=3",
    "autoencoder.allow_poor_reconstruction=true",
    "evaluate.fine_tune=false",
]


@contextmanager
def without_figures():
    """Reports without figures: they take most of the time of a tiny run, and have tests of their own."""
    from pdiff_hf.report.plots.style import Plot

    def save_png(plot, folder):
        (folder / f"{plot.name}.png").write_bytes(b"")
        return folder / f"{plot.name}.png"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plot, "save_png", save_png)
        patch.setattr(Plot, "svgs", lambda plot: dict.fromkeys(("wide", "narrow"), "<svg></svg>"))
        yield


def tiny_recipe(*overrides, seed=None):
    """`digits-mlp` in seconds, without the baseline that takes the generator's time again."""
    from pdiff_hf.runs.recipe import load_recipe

    return load_recipe("digits-mlp", [*TINY_RUN, "evaluate.fine_tune=false", *overrides], seed)


def make_network(seed=0):
    torch.manual_seed(seed)
    return mlp3(**NETWORK)


def make_layout():
    return ParameterLayout.from_model(make_network())


def make_vectors(num_rows=24, seed=0):
    """A random walk of whole networks: correlated rows of rank 10, as checkpoints of one run are."""
    generator = torch.Generator().manual_seed(seed)
    start = make_layout().flatten(make_network())
    directions = torch.randn(10, len(start), generator=generator)
    walk = torch.randn(num_rows, 10, generator=generator).cumsum(0)
    return start + 0.02 * walk @ directions + 1e-4 * torch.randn(num_rows, len(start), generator=generator)


def make_dataset(folder, num_rows=24):
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK).save_weights(
        make_network(), folder / "source"
    )
    save_parameter_dataset(make_vectors(num_rows), make_layout(), folder / "dataset", base)
    return folder / "dataset"


def make_autoencoder(kind="pdiff", **options):
    options = {"layout": make_layout().to_dict(), **LATENTS, **options}
    torch.manual_seed(0)
    if kind == "pca":
        autoencoder = AutoencoderPCA(**options)
    else:
        autoencoder = AutoencoderPDiff.from_preset(
            "fast", **{"channels": (8, 8), "kernel_size": 4, "stride": 4, **options}
        )
    vectors = make_vectors()
    autoencoder.fit_statistics(vectors)
    with torch.no_grad():
        autoencoder.set_latent_statistics(autoencoder.encode(vectors).latents)
    return autoencoder.eval()


def make_pipeline(kind="pdiff"):
    torch.manual_seed(0)
    unet = make_unet_1d(**LATENTS, block_out_channels=(16, 16)).eval()
    scheduler = DDPMScheduler(clip_sample=False, prediction_type="v_prediction")
    pipeline = PDiffPipeline(make_autoencoder(kind), unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_conditional_pipeline(spec=None, partial=False):
    """A pipeline whose untrained denoiser listens to its conditions, by default subsets of three classes."""
    spec = spec or ConditionSpec.named("classes", ["airplane", "cat", "dog"])
    torch.manual_seed(0)
    shape = {"in_channels": LATENTS["latent_channels"], "sample_size": LATENTS["latent_length"]}
    encoder = ConditionEncoder(**spec.to_dict(), partial=partial).eval()
    condition = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": encoder.embed_size}
    unet = UNet1DConditionModel(**shape, **condition, block_out_channels=(16,)).eval()
    for weights in (unet.conv_out.weight, unet.null_embedding):
        torch.nn.init.normal_(weights, std=0.5)
    scheduler = DDPMScheduler(clip_sample=False, prediction_type="v_prediction")
    unet.gaussian.set_schedule(scheduler)
    pipeline = PDiffPipeline(make_autoencoder("pca"), unet, scheduler, condition_encoder=encoder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Killed(BaseException):
    """What ends a collection as a signal would."""


def kill_collection(patch, num_parts):
    """Let a collection of a zoo be killed at the end of its so manyth part; the runs of all parts that are begun."""
    from pdiff_hf.tasks.collect_runs import ZooCollector

    made, collect_part = [], ZooCollector.collect

    def killed(self, runs, folder, advance):
        made.append(list(runs))
        collect_part(self, runs, folder, advance)
        if len(made) == num_parts:
            raise Killed

    patch.setattr(ZooCollector, "collect", killed)
    return made


def count_exports(patch):
    """Forget all graphs, and count: batch sizes of the calls of torch.export from here on."""
    from pdiff_hf import exported

    patch.setattr(exported, "_IN_MEMORY", type(exported._IN_MEMORY)())
    sizes, export = [], torch.export.export

    def count(model, args, **options):
        sizes.append(len(args[0]))
        return export(model, args, **options)

    patch.setattr(torch.export, "export", count)
    return sizes
