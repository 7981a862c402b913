"""A whole run: each stage reads the folder of the stage before it and writes its own; complete ones are skipped."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate.utils import set_seed

from ..data.dataset import ParameterDataset
from ..data.order import RowOrder
from ..data.vectors import split_rows
from ..files import errors_of, partial_folder, read_json
from ..forward import forward_logits
from ..identity import check_same_network, read_identity
from ..layout import ParameterLayout
from ..machine import default_device, one_writer, process_state
from ..models.config import AutoencoderConfig, DiffusionConfig, latent_arguments
from ..pipelines.card import write_pipeline_card
from ..pipelines.sampling import load_pipeline, make_scheduler
from ..pipelines.schedulers import check_scheduler
from ..results.metrics import METRICS_FILE, Metrics, read_denoiser
from ..results.text import reconstruction
from ..tasks.auto import load_task
from ..tasks.base_training import train_base_model_once
from ..tasks.collect import check_collection, collect_checkpoints
from ..tasks.collect_runs import is_whole_network
from ..tasks.collect_tasks import NUM_ANSWERS, check_classes
from ..tasks.components import components_of
from ..tasks.conditions import have_own_tasks
from ..tasks.config import FunctionConfig, SplitConfig, ZooConfig
from ..tasks.evaluators import AnyTask, make_gate_evaluator, open_task
from ..tasks.families_config import TasksConfig
from ..tasks.populations import describe_populations
from ..tasks.probes import make_probes
from ..tasks.runs_config import RunsConfig
from ..tasks.task import Task
from ..tasks.unseen_tasks import has_task_networks
from ..training.autoencoder import train_autoencoder
from ..training.denoiser import split_validation
from ..training.diffusion import train_diffusion
from ..training.memory import check_unet_memory
from ..wording import argument
from .evaluate import evaluate_run, fine_tune_run
from .folder import GATE_FILE, TRAINED, Run, begin_run, open_run
from .generate import generate_networks
from .recipe import GenerateConfig, Recipe, TrainingRecipe, check_condition, fit_recipe
from .unseen_tasks import conditions_of_unseen

# Stages whose folders say which network they are of.
MADE_OF_DATASET = ("autoencoder", "diffusion", "generate", "fine_tune")


@one_writer("folder")
def run_recipe(
    recipe: Recipe, folder: str | Path, report: Callable[[str], None] = lambda line: None
) -> Metrics | None:
    """Carry out all stages of a recipe and return what its evaluation has found.

    For a collection of many tasks, `generate.num_samples` networks are made for every unseen task. Without such tasks
    the run ends after the pipeline: a line says so, and there is nothing to return.

    What can be checked without training is checked before the folder is touched. Started by `accelerate launch`, the
    processes share every stage, and the main one writes.

    Args:
        recipe ([`Recipe`]): What is done.
        folder (`str` or `Path`): New, or begun by the same recipe: then it goes on where it stopped.
        report (`Callable`, *optional*): Receives a line of text after every stage.

    Raises:
        ValueError: bad input, another run in the folder, or an autoencoder that misses the gate.
    """
    recipe, lines = fit_recipe(recipe)
    check_sampling(recipe.diffusion, recipe.generate)
    check_condition(recipe)
    run = open_run(recipe, folder)
    task = load_task(recipe.task, recipe.base_model.reference())
    model = None if run.is_complete("collect") else prepare_base_model(recipe, task, run.path("collect"))
    begin_run(recipe, run)
    for line in lines:
        report(line)
    pipeline = run.path("diffusion")

    run.do("collect", lambda path: collect_stage(recipe, path, task, model), report)
    dataset = ParameterDataset(run.path("collect"), trusted_imports=recipe.base_model.trusted_imports)
    check_complete_stages(run, dataset)
    run.do("autoencoder", lambda path: autoencoder_stage(dataset, path, recipe.autoencoder, task), report)
    run.do("diffusion", lambda path: diffusion_stage(dataset, run.path("autoencoder"), path, recipe.diffusion), report)
    drawn = recipe.generate.model_dump()
    if have_own_tasks(dataset, task) and recipe.generate.condition is None:
        if not has_task_networks(dataset):
            report(
                "generate, evaluate: left out. There are no networks of validation and unseen tasks to compare with "
                f"(collect.validation, collect.unseen); pdiff generate {pipeline} --condition … makes networks."
            )
            return None
        drawn["condition"] = conditions_of_unseen(dataset, recipe.generate.num_samples)
        drawn["num_samples"] = len(drawn["condition"])

    run.do(
        "generate",
        lambda path: generate_networks(load_pipeline(pipeline), path, dataset=dataset, **drawn),
        report,
    )

    fine_tune_run(run, dataset, recipe.evaluate, task, report)

    def evaluate(path: Path) -> None:
        metrics = evaluate_run(run, recipe.evaluate, dataset, task)
        if process_state().is_main_process:
            write_pipeline_card(pipeline, metrics, report_dir=run.path("evaluate"))

    run.do("evaluate", evaluate, report)
    return Metrics.read(run.path("evaluate") / METRICS_FILE)


def check_complete_stages(run: Run, dataset: ParameterDataset) -> None:
    """Raise `ValueError` when what a run has made already is of another network than the dataset."""
    for stage in MADE_OF_DATASET:
        if run.is_complete(stage):
            advice = "give the dataset that it was made of, or another folder for the new run"
            check_same_network(dataset.identity, read_identity(run.path(stage)), advice)


def prepare_base_model(recipe: Recipe, task: Task, output_dir: Path) -> torch.nn.Module:
    """Build the base model, still untrained, and try the rest of the recipe on it.

    Raises:
        ValueError: it does not take the images or has another number of classes, the selection or the folder for the
            checkpoints is invalid, independent runs are not to be trained, or the training stages do not fit what will
            be collected.
    """
    set_seed(recipe.base_training.seed)
    model = recipe.base_model.build()
    layout = check_collection(model, recipe.collect, output_dir)
    kind, num_classes = recipe.collect.kind, task.num_classes
    if isinstance(recipe.collect, RunsConfig):
        describe_populations(recipe.collect, num_classes)
    if isinstance(recipe.collect, TasksConfig):
        check_classes(recipe.collect, task)
        num_classes = NUM_ANSWERS
    if isinstance(recipe.collect, ZooConfig):
        if recipe.base_training.epochs == 0:
            raise ValueError(
                f"expected base_training.epochs of 1 or more with collect.kind={kind}, found 0; that is how long "
                "every run is trained"
            )
        if not is_whole_network(model, layout) and recipe.base_model.is_untrained:
            raise ValueError(
                f"expected pretrained weights or collect.select=all with collect.kind={kind}, found that the rest of "
                f"an untrained {recipe.base_model.name} would stay as it is; set base_model.kwargs.pretrained=true "
                "(timm) or base_model.pretrained (transformers)"
            )
    inputs = task.arrays("val")[0][:2]
    try:
        with torch.no_grad():
            logits = forward_logits(model, inputs)
    except (RuntimeError, IndexError, TypeError) as error:
        keys = "task.image_size or task.in_chans" if task.noun == "images" else "task.max_length or task.vocab_size"
        raise ValueError(
            f"expected a base model that takes {task.noun} {tuple(inputs.shape[1:])}, found {recipe.base_model.name} "
            f"({str(error).splitlines()[0]}); change base_model.kwargs, {keys}."
        ) from error
    if logits.shape != (len(inputs), num_classes):
        fact = argument("num_classes", str(num_classes), key="num_classes")
        fact = f"give {fact} to a recipe composed of parts, or " if num_classes == task.num_classes else ""
        raise ValueError(
            f"expected a base model for {num_classes} classes, found that {recipe.base_model.name} gives "
            f"{tuple(logits.shape[1:])} logits; {fact}change base_model.kwargs."
        )
    fitted, _ = fit_recipe(recipe)
    check_training(layout, planned_rows(recipe), fitted.autoencoder, fitted.diffusion)
    return model


def planned_rows(recipe: Recipe) -> RowOrder:
    """The rows that a recipe will collect."""
    config = recipe.collect
    return RowOrder.of_runs(*[config.rows_per_run] * (config.num_rows // config.rows_per_run))


def check_training(
    layout: ParameterLayout, order: RowOrder, autoencoder: AutoencoderConfig, diffusion: DiffusionConfig
) -> None:
    """Build both networks of the training stages without memory for their weights, and count the checkpoints.

    Raises:
        ValueError: a network cannot be built, or there are too few checkpoints.
    """
    with torch.device("meta"):
        channels, length = autoencoder.build(layout.to_dict()).latent_shape
    num_rows = len(order.runs)
    train_rows, heldout_rows = split_rows(num_rows, autoencoder.holdout_every)
    if len(heldout_rows) == 0:
        raise ValueError(
            f"expected at least {autoencoder.holdout_every // 2 + 1} checkpoints for autoencoder.holdout_every="
            f"{autoencoder.holdout_every}, found {num_rows}; collect more or lower it."
        )
    if autoencoder.has_components and channels * length > len(train_rows) - 1:
        raise ValueError(
            f"{channels * length} latent values need at least {channels * length + 1} training checkpoints, got "
            f"{len(train_rows)}. Collect more checkpoints or take fewer latent values, {latent_arguments()}."
        )
    with errors_of(f"autoencoder.kind={autoencoder.kind}") if autoencoder.latents_grow else nullcontext():
        fewer = "an autoencoder" if autoencoder.latents_grow else None
        split_validation(diffusion, order.by_run(train_rows.tolist()), channels * length, fewer)
        with torch.device("meta"):
            unet = diffusion.build((channels, length))
        if autoencoder.latents_grow:
            check_unet_memory(unet, diffusion.train_batch_size, num_rows)


def check_sampling(diffusion: DiffusionConfig, generate: GenerateConfig) -> None:
    """Check that the scheduler of `generate` can draw from what will be trained; `ValueError` when it cannot."""
    if generate.sampler == "diffusion":
        trained = diffusion.build_scheduler()
        scheduler = make_scheduler(generate.scheduler, trained, generate.num_inference_steps)
        with errors_of("generate"):
            check_scheduler(scheduler, trained, generate.num_inference_steps)


@one_writer("output_dir", beside=True)
def collect(recipe: Recipe, output_dir: Path) -> dict:
    """Train a base model and collect its checkpoints into a parameter dataset; returns their number and accuracy."""
    task = load_task(recipe.task, recipe.base_model.reference())
    return collect_stage(recipe, output_dir, task, prepare_base_model(recipe, task, output_dir))


def collect_stage(recipe: Recipe, output_dir: Path, task: Task, model: torch.nn.Module) -> dict:
    """Train the base model that [`prepare_base_model`] has built, and collect its checkpoints.

    What is done is kept until all is: the base model, and every complete run.
    """
    base_model = recipe.base_model.reference()
    training, build = recipe.base_training, recipe.base_model.build
    is_zoo = isinstance(recipe.collect, ZooConfig)
    if is_zoo and not components_of(model):
        model.to(default_device())
    else:
        model, _ = train_base_model_once(task, base_model, model, training, partial_folder(output_dir), is_zoo)
    return collect_checkpoints(task, base_model, model, training, recipe.collect, output_dir, recipe.seed, build=build)


def autoencoder_stage(
    dataset: ParameterDataset, output_dir: Path, config: AutoencoderConfig, task: AnyTask | None
) -> str:
    """Train the autoencoder, from its last checkpoint if there is one, and pass the gate.

    Returns what the gate has found, as a line of text.
    """
    evaluator, probes = make_gate_evaluator(dataset, task), make_probes(dataset, config, task)
    _, report = train_autoencoder(
        dataset, output_dir, config, evaluator, resume_from_checkpoint="latest", probes=probes
    )
    return reconstruction(report)


def diffusion_stage(
    dataset: ParameterDataset, autoencoder_dir: Path, output_dir: Path, config: DiffusionConfig
) -> str:
    """Train the denoiser, from its last checkpoint if there is one, and save the pipeline with its card.

    Returns what it has learned, as a line of text.
    """
    train_diffusion(dataset, autoencoder_dir, output_dir, config, resume_from_checkpoint="latest")
    if process_state().is_main_process:
        write_pipeline_card(output_dir)
    return read_denoiser(output_dir).describe()


@one_writer("folder")
def train_stages(
    recipe: TrainingRecipe,
    dataset: ParameterDataset,
    folder: str | Path,
    report: Callable[[str], None] = lambda line: None,
    given_task: SplitConfig | FunctionConfig | None = None,
) -> dict:
    """Both training stages on a recipe's parameter dataset, as [`run_recipe`]; returns the reconstruction report.

    The parameter dataset may be in the folder. The gate judges networks by its task, or by `given_task`.
    """
    recipe, lines = fit_recipe(recipe, len(dataset))
    run = open_run(recipe, folder, written=TRAINED)
    # Its rows and base weights are read, and so checked, before anything is written.
    dataset.vectors()
    if dataset.base_model is not None:
        dataset.base_model.carried_files()
    recipe.diffusion.uses_conditions(dataset.condition_spec)
    check_training(dataset.layout, dataset.order, recipe.autoencoder, recipe.diffusion)
    check_complete_stages(run, dataset)
    task = open_task(dataset, given_task)
    begin_run(recipe, run)
    for line in lines:
        report(line)
    autoencoder = run.path("autoencoder")
    run.do("autoencoder", lambda path: autoencoder_stage(dataset, path, recipe.autoencoder, task), report)
    run.do("diffusion", lambda path: diffusion_stage(dataset, autoencoder, path, recipe.diffusion), report)
    return read_json(autoencoder / GATE_FILE)
