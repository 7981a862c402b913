"""A whole run: each stage reads the folder of the stage before it and writes its own; complete ones are skipped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml
from accelerate.utils import set_seed

from .base_model import forward_logits
from .data.dataset import dataset_vectors, load_base_model, load_parameter_dataset
from .evaluation import build_groups, evaluate_groups, write_report
from .files import read_json
from .generation import generate_networks, load_generated, load_pipeline
from .hub.cards import write_pipeline_card
from .layout import ParameterLayout
from .models import load_autoencoder, make_unet_1d
from .recipe import EvaluateConfig, Recipe, TrainingRecipe
from .run_folder import GATE_FILE, RECIPE_FILE, STAGES, Run, begin_run, cost_since, open_run
from .tasks import ImageClassification, check_collection, collect_checkpoints, train_base_model
from .tasks.stored import load_stored_task, make_val_evaluator
from .training import AutoencoderConfig, DiffusionConfig, train_autoencoder, train_diffusion
from .training.autoencoder import build_autoencoder, split_rows
from .training.gate import reconstruct


def run_recipe(recipe: Recipe, folder: str | Path, report: Callable[[str], None] = lambda line: None) -> dict:
    """Carry out all stages of a recipe and return the content of `metrics.json`.

    What can be checked without training is checked before the folder is touched.

    Args:
        recipe ([`Recipe`]): Validated.
        folder (`str` or `Path`): New, or begun by the same recipe: then it goes on where it stopped.
        report (`Callable`, *optional*): Receives a line of text after every stage.

    Raises:
        ValueError: bad input, another run in the folder, or an autoencoder that misses the gate.
    """
    run = open_run(recipe, folder)
    task = ImageClassification(recipe.task, recipe.base_model.reference())
    model = None if run.is_complete("collect") else prepare_base_model(recipe, task, run.path("collect"))
    begin_run(recipe, run)
    dataset, pipeline, trusted = run.path("collect"), run.path("diffusion"), recipe.base_model.trusted_imports

    run.do("collect", lambda path: collect_stage(recipe, path, task, model), report)
    run.do("autoencoder", lambda path: autoencoder_stage(dataset, path, recipe.autoencoder, task, trusted), report)
    run.do("diffusion", lambda path: diffusion_stage(dataset, run.path("autoencoder"), path, recipe.diffusion), report)

    run.do(
        "generate",
        lambda path: generate_networks(load_pipeline(pipeline), path, **recipe.generate.model_dump()),
        report,
    )

    def evaluate(path: Path) -> None:
        metrics = evaluate_run(run, recipe.evaluate, task, trusted)
        write_pipeline_card(pipeline, metrics)

    run.do("evaluate", evaluate, report)
    return read_json(run.path("evaluate") / "metrics.json")


def prepare_base_model(recipe: Recipe, task: ImageClassification, output_dir: Path) -> torch.nn.Module:
    """Build the base model, still untrained, and try the rest of the recipe on it.

    Raises:
        ValueError: it does not take the images or has another number of classes, the selection or the folder for the
            checkpoints is invalid, or the training stages do not fit what will be collected.
    """
    set_seed(recipe.base_training.seed)
    model = recipe.base_model.reference().build(recipe.base_model.trusted_imports)
    layout = check_collection(model, recipe.collect, output_dir)
    images = task.arrays("val")[0][:2]
    try:
        with torch.no_grad():
            logits = forward_logits(model, images)
    except RuntimeError as error:
        raise ValueError(
            f"expected a base model that takes images {tuple(images.shape[1:])}, found {recipe.base_model.name} "
            f"({str(error).splitlines()[0]}); change base_model.kwargs, task.image_size or task.in_chans."
        ) from error
    if logits.shape != (len(images), task.num_classes):
        raise ValueError(
            f"expected a base model for {task.num_classes} classes, found that {recipe.base_model.name} gives "
            f"{tuple(logits.shape[1:])} logits; change base_model.kwargs."
        )
    check_training(layout, recipe.collect.runs * recipe.collect.num_checkpoints, recipe.autoencoder, recipe.diffusion)
    return model


def check_training(
    layout: ParameterLayout, num_rows: int, autoencoder: AutoencoderConfig, diffusion: DiffusionConfig
) -> None:
    """Build both networks of the training stages without memory for their weights, and count the checkpoints.

    Raises:
        ValueError: a network cannot be built, or there are too few checkpoints.
    """
    channels, length = autoencoder.latent_channels, autoencoder.latent_length
    with torch.device("meta"):
        model = build_autoencoder(autoencoder, layout.to_dict())
        make_unet_1d(channels, length, diffusion.block_out_channels, diffusion.layers_per_block)
    train_rows, heldout_rows = split_rows(num_rows, autoencoder.holdout_every)
    if len(heldout_rows) == 0:
        raise ValueError(
            f"expected at least {autoencoder.holdout_every // 2 + 1} checkpoints for autoencoder.holdout_every="
            f"{autoencoder.holdout_every}, found {num_rows}; collect more or lower it."
        )
    has_components = autoencoder.kind == "pca" or model.config.linear_path
    if has_components and channels * length > len(train_rows) - 1:
        raise ValueError(
            f"{channels * length} latent values need at least {channels * length + 1} training checkpoints, got "
            f"{len(train_rows)}. Collect more checkpoints or lower latent_channels × latent_length."
        )


def collect(recipe: Recipe, output_dir: Path) -> dict:
    """Train a base model and collect its checkpoints into a parameter dataset; returns their number and accuracy."""
    task = ImageClassification(recipe.task, recipe.base_model.reference())
    return collect_stage(recipe, output_dir, task, prepare_base_model(recipe, task, output_dir))


def collect_stage(recipe: Recipe, output_dir: Path, task: ImageClassification, model: torch.nn.Module) -> dict:
    """Train the base model that [`prepare_base_model`] has built, and collect its checkpoints."""
    train_base_model(task, model, recipe.base_training)
    return collect_checkpoints(
        task,
        recipe.base_model.reference(),
        model,
        recipe.base_training,
        recipe.collect,
        output_dir,
        seed=recipe.seed,
        trusted_imports=recipe.base_model.trusted_imports,
    )


def autoencoder_stage(
    dataset_dir: Path,
    output_dir: Path,
    config: AutoencoderConfig,
    task: ImageClassification | None,
    trusted_imports: Sequence[str] = (),
) -> dict:
    """Train the autoencoder, from its last checkpoint if there is one, and pass the gate."""
    evaluator = make_val_evaluator(dataset_dir, task, trusted_imports=trusted_imports)
    return train_autoencoder(dataset_dir, output_dir, config, evaluator, resume_from_checkpoint="latest")[1]


def diffusion_stage(dataset_dir: Path, autoencoder_dir: Path, output_dir: Path, config: DiffusionConfig) -> None:
    """Train the denoiser, from its last checkpoint if there is one, and save the pipeline with its card."""
    train_diffusion(dataset_dir, autoencoder_dir, output_dir, config, resume_from_checkpoint="latest")
    write_pipeline_card(output_dir)


def train_stages(
    recipe: TrainingRecipe,
    folder: str | Path,
    trusted_imports: Sequence[str] = (),
    report: Callable[[str], None] = lambda line: None,
) -> dict:
    """Both training stages on a parameter dataset; returns the reconstruction report.

    Args:
        recipe ([`TrainingRecipe`]): Validated.
        folder (`str` or `Path`): New, or begun by the same recipe: then it goes on where it stopped. The parameter
            dataset may be in it.
        trusted_imports (`Sequence[str]`, *optional*): See [`BaseModel.build`].
        report (`Callable`, *optional*): Receives a line of text after every stage.

    Raises:
        ValueError: bad input, another run in the folder, or an autoencoder that misses the gate.
    """
    dataset_dir = Path(recipe.dataset)
    run = open_run(recipe, folder, written=[name for stage, name in STAGES.items() if stage != "collect"])
    dataset, layout = load_parameter_dataset(dataset_dir)
    dataset_vectors(dataset, layout)
    check_training(layout, len(dataset), recipe.autoencoder, recipe.diffusion)
    task = load_stored_task(dataset_dir)
    begin_run(recipe, run)
    autoencoder = run.path("autoencoder")
    run.do(
        "autoencoder",
        lambda path: autoencoder_stage(dataset_dir, path, recipe.autoencoder, task, trusted_imports),
        report,
    )
    run.do("diffusion", lambda path: diffusion_stage(dataset_dir, autoencoder, path, recipe.diffusion), report)
    return read_json(autoencoder / GATE_FILE)


def evaluate_config(run: Run, seed: int | None = None) -> EvaluateConfig:
    """The recipe's `evaluate` section if `run` has a recipe, else the defaults; with another seed if one is given."""
    path = run.folder / RECIPE_FILE
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return EvaluateConfig.model_validate({**values.get("evaluate", {}), **({} if seed is None else {"seed": seed})})


def evaluate_run(
    run: Run,
    config: EvaluateConfig,
    task: ImageClassification | None = None,
    trusted_imports: Sequence[str] = (),
    *,
    dataset_dir: Path | None = None,
    pipeline_dir: Path | None = None,
    generated_dir: Path | None = None,
    output_dir: Path | None = None,
) -> dict:
    """Evaluate originals, reconstructions, generated networks and baselines, and write the report anew.

    Args:
        run ([`Run`]): Its folders are evaluated, and what its stages cost is reported.
        config ([`EvaluateConfig`]): Batches, memory and the seed of the baselines.
        task ([`ImageClassification`], *optional*): That of the dataset by default.
        trusted_imports (`Sequence[str]`, *optional*): See [`BaseModel.build`].
        dataset_dir, pipeline_dir, generated_dir, output_dir (`Path`, *optional*): Instead of the run's folders.

    Returns:
        `dict`: the content of `metrics.json`.

    Raises:
        ValueError: the dataset names no task or base model, a folder is missing or damaged, or `output_dir` holds
            something that is no report.
    """
    start = time.perf_counter()
    dataset_dir = dataset_dir or run.path("collect")
    output_dir = output_dir or run.path("evaluate")
    is_report = (output_dir / "metrics.json").is_file()
    if output_dir.exists() and not is_report and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"expected a new folder or an earlier report, found that {output_dir} is neither.")
    task = task or load_stored_task(dataset_dir)
    base_model = load_base_model(dataset_dir)
    if task is None or base_model is None:
        raise ValueError(f"{dataset_dir} names no {'task' if task is None else 'base model'}; evaluation needs both.")
    dataset, layout = load_parameter_dataset(dataset_dir)
    originals = dataset_vectors(dataset, layout)
    generated = load_generated(generated_dir or run.path("generate"), layout)
    autoencoder = load_autoencoder((pipeline_dir or run.path("diffusion")) / "autoencoder")
    groups = build_groups(originals, generated, layout, reconstruct(autoencoder, originals), seed=config.seed)
    result = evaluate_groups(
        groups,
        base_model.build(trusted_imports),
        layout,
        val=task.arrays("val"),
        test=task.arrays("test"),
        batch_size=config.batch_size,
        device=torch.accelerator.current_accelerator(check_available=True),
        max_cache_bytes=config.max_cache_mb * 2**20,
    )
    costs = {**run.stages, "evaluate": cost_since(start)}
    logs = {stage: run.path(stage) / "train_log.jsonl" for stage in ("autoencoder", "diffusion")}
    gate = run.path("autoencoder") / GATE_FILE
    partial = output_dir.with_name(f".{output_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_report(
        result,
        partial,
        task=task.describe(),
        timings_s={stage: cost["seconds"] for stage, cost in costs.items()},
        peak_rss_mb={stage: cost["peak_rss_mb"] for stage, cost in costs.items()},
        gate=read_json(gate) if gate.is_file() else None,
        logs={stage: path for stage, path in logs.items() if path.is_file()},
    )
    shutil.rmtree(output_dir, ignore_errors=True)
    partial.rename(output_dir)
    return read_json(output_dir / "metrics.json")
