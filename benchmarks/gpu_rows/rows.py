"""The workloads of `benchmarks/gpu.py`, each beside the method as it was published.

That is the preset `paper` of both stages, networks drawn one by one in 1000 steps, and evaluated one by one by full
forward passes. What would take minutes is timed on a part and multiplied; every row says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch

from common import flat_layout, write_walk
from pdiff_hf import PDiffPipeline
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.machine import default_device
from pdiff_hf.models.auto import AUTOENCODER, DENOISER
from pdiff_hf.pipelines.sampling import load_pipeline
from pdiff_hf.runs.generate import generate_networks
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import collect
from pdiff_hf.tasks.auto import load_task
from pdiff_hf.tasks.base_training import train_base_model
from pdiff_hf.tasks.evaluators import make_gate_evaluator
from pdiff_hf.tasks.probes import make_probes
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.diffusion import train_diffusion

from .timing import seconds_of, step_seconds

# Of the paper, v3.
PAPER_SAMPLING_STEPS = 1000
POOR = {"allow_poor_reconstruction": True}
# Per row: seconds, those of the published method or `None` where it cannot, and how both were measured.
Found = dict[str, Any]


def stage(validate: Callable, /, **options: Any) -> Any:
    """The configuration of a stage that writes no checkpoints on the way."""
    return validate({"checkpointing_steps": 10**9, "lr_warmup_steps": 0, **options})


def resnet_tail() -> tuple[torch.nn.Module, ParameterLayout]:
    """ResNet-18 and its last two norms, 2 048 parameters."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=10).eval()
    return model, ParameterLayout.from_model(model, "last_norms:2")


def dataset_to_networks(scale: dict) -> Found:
    """K checkpoints of 2 048 parameters → both trainings, the gate on 500 images, networks in files."""
    model, layout = resnet_tail()
    images, labels = torch.randn(500, 3, 32, 32), torch.arange(500) % 10
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_walk(folder / "dataset", scale["rows"], layout)
        dataset, number = ParameterDataset(folder / "dataset"), [0]

        def everything() -> None:
            number[0] += 1
            out = folder / f"run-{number[0]}"
            gate = ParameterEvaluator(model, layout, images, labels, device=default_device())
            train_autoencoder(dataset, out / "autoencoder", AUTOENCODER.validate(POOR), gate)
            train_diffusion(dataset, out / "autoencoder", out / "pipeline", DENOISER.validate({}))
            generate_networks(load_pipeline(out / "pipeline"), out / "generated", scale["networks"])

        seconds = seconds_of(everything, scale["repeats"])
        found = published_stages(dataset, folder, scale)
    return {"seconds": seconds, **found}


def published_stages(dataset: ParameterDataset, folder: Path, scale: dict) -> Found:
    """Both stages with the preset `paper`, and networks drawn one by one."""
    steps, paper = scale["paper_steps"], {"preset": "paper"}

    def autoencoder(steps: int, out: Path) -> None:
        train_autoencoder(dataset, out, stage(AUTOENCODER.validate, kind="pdiff", steps=steps, **paper, **POOR))

    def denoiser(steps: int, out: Path) -> None:
        config = stage(DENOISER.validate, kind="unet_1d", steps=steps, **paper)
        train_diffusion(dataset, folder / "paper", out, config)

    autoencoder(1, folder / "paper")
    training = AUTOENCODER.validate({"kind": "pdiff", **paper}).steps * step_seconds(autoencoder, *steps, repeats=1)
    training += DENOISER.validate({"kind": "unet_1d", **paper}).steps * step_seconds(denoiser, *steps, repeats=1)
    denoiser(1, folder / "paper_pipeline")
    pipeline = PDiffPipeline.from_pretrained(folder / "paper_pipeline").to(default_device())
    pipeline.set_progress_bar_config(disable=True)
    one = seconds_of(lambda: pipeline(num_inference_steps=20), 3) / 20 * PAPER_SAMPLING_STEPS
    note = f"steps {steps[0]} to {steps[1]} of both trainings and 20 of 1 000 of a network, multiplied"
    return {"published": training + scale["networks"] * one, "note": note}


def denoiser_step(scale: dict) -> Found:
    """One step on latents of 32 × 4 in batches of 128, with everything that belongs to it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_walk(folder / "dataset", 300, flat_layout(2048))
        dataset = ParameterDataset(folder / "dataset")
        latents = {"latent_channels": 32, "latent_length": 4}
        train_autoencoder(
            dataset, folder / "ae", stage(AUTOENCODER.validate, kind="pdiff", steps=1, **latents, **POOR)
        )

        def train(**options: Any) -> Callable[[int, Path], object]:
            return lambda steps, out: train_diffusion(
                dataset,
                folder / "ae",
                out,
                stage(DENOISER.validate, steps=steps, train_batch_size=128, validate="none", **options),
            )

        own = step_seconds(train(), *scale["steps"])
        paper = train(kind="unet_1d", preset="paper", block_out_channels=(64, 128, 256))
        published = step_seconds(paper, *scale["paper_steps"])
    note = "the published one without its fourth level, for which latents of this length are too short"
    return {"seconds": own, "published": published, "note": note}


def tails(scale: dict) -> Found:
    """100 networks of ResNet-18 that differ in the last two norms; the export, once a network, is a row of its own."""
    model, layout = resnet_tail()
    size, device = scale["size"], default_device()
    vectors = (layout.flatten(model) + 0.1 * torch.randn(scale["networks"], layout.num_parameters)).to(device)
    images, labels = torch.randn(scale["images"], 3, size, size), torch.arange(scale["images"]) % 10

    def evaluate() -> None:
        ParameterEvaluator(model, layout, images.to(device), labels, device=device).predict(vectors)

    export = seconds_of(evaluate, 1, warm_up=False)
    seconds = seconds_of(evaluate, scale["repeats"])
    full, batches = model.to(device), images.to(device).split(500)

    @torch.no_grad()
    def one_by_one() -> None:
        for vector in vectors[:2]:
            layout.load_into(full, vector)
            torch.cat([full(batch) for batch in batches]).argmax(1)

    published = seconds_of(one_by_one, 1) / 2 * len(vectors)
    note = f"with export and start of libraries {export:.1f} s; full forwards of 2 networks, multiplied"
    return {"seconds": seconds, "published": published, "note": note}


def whole_network(scale: dict) -> Found:
    """A whole network: PCA, denoiser and drawn networks, from Parquet files to safetensors files."""
    with torch.device("meta"):
        layout = ParameterLayout.from_model(timm.create_model(scale["network"], num_classes=10), "all")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_walk(folder / "dataset", scale["rows"], layout)
        number = [0]

        def everything() -> None:
            number[0] += 1
            out, dataset = folder / f"run-{number[0]}", ParameterDataset(folder / "dataset")
            config = {"kind": "pca", "latent_channels": scale["latents"], "latent_length": 1, **POOR}
            train_autoencoder(dataset, out / "ae", AUTOENCODER.validate(config))
            train_diffusion(dataset, out / "ae", out / "pipeline", DENOISER.validate({}))
            generate_networks(load_pipeline(out / "pipeline"), out / "generated", scale["networks"])

        seconds = seconds_of(everything, 1, warm_up=False)
    return {"seconds": seconds, "published": None, "note": "the published code cannot: its layers need D values each"}


def long_autoencoder(scale: dict) -> Found:
    """500 steps of an autoencoder of 300 288 parameters in batches of 50: the presets `fast` and `paper`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_walk(folder / "dataset", 60, flat_layout(scale["values"]))
        dataset, of_preset = ParameterDataset(folder / "dataset"), {}
        for preset, steps in (("fast", scale["steps"]), ("paper", scale["paper_steps"])):
            if steps is None:
                continue

            def train(steps: int, out: Path, preset: str = preset) -> None:
                options = {"kind": "pdiff", "preset": preset, "train_batch_size": 50, "steps": steps}
                train_autoencoder(dataset, out, stage(AUTOENCODER.validate, **options, **POOR))

            of_preset[preset] = 500 * step_seconds(train, *steps, repeats=1)
    note = f"steps {scale['steps'][0]} to {scale['steps'][1]}, multiplied"
    if "paper" not in of_preset:
        note += "; the preset `paper` needs 45 GB"
    return {"seconds": of_preset["fast"], "published": of_preset.get("paper"), "note": note}


def zoo(scale: dict) -> Found:
    """Independent perceptrons 64-32-16-10 on the embedded digits, trained to the end and written."""
    options = [f"collect.runs={scale['networks']}", f"base_training.epochs={scale['epochs']}"]
    recipe = load_recipe("digits-mlp-seeds", options)
    task, base = load_task(recipe.task), recipe.base_model.reference()
    published = seconds_of(lambda: train_base_model(task, base.build(), recipe.base_training, progress=False), 1)
    with tempfile.TemporaryDirectory() as folder:
        seconds = seconds_of(lambda: collect(recipe, Path(folder) / "dataset"), 1, warm_up=False)
    note = "one network alone, multiplied"
    return {"seconds": seconds, "published": published * scale["networks"], "note": note}


def function_autoencoder(scale: dict) -> Found:
    """Steps of the autoencoder that compares what perceptrons 64-32-16-10 compute."""
    # What their weights are does not change what a step takes.
    recipe = load_recipe("digits-mlp-seeds", [f"collect.runs={scale['networks']}", "base_training.epochs=1"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        collect(recipe, folder / "dataset")
        dataset = ParameterDataset(folder / "dataset")

        def train(steps: int, out: Path) -> None:
            options = recipe.autoencoder.model_dump(exclude_unset=True)
            config = stage(AUTOENCODER.validate, **{**options, **POOR, "steps": steps})
            train_autoencoder(dataset, out, config, make_gate_evaluator(dataset), probes=make_probes(dataset, config))

        seconds = scale["total"] * step_seconds(train, *scale["steps"], repeats=1)
    note = f"steps {scale['steps'][0]} to {scale['steps'][1]}, multiplied"
    return {"seconds": seconds, "published": None, "note": note}
