"""Evaluation of what a run has made: groups, protocol, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml

from ..data.dataset import dataset_vectors, load_base_model, load_parameter_dataset
from ..evaluation.evaluate import evaluate_groups
from ..evaluation.evaluator import ParameterEvaluator
from ..evaluation.groups import build_groups
from ..evaluation.permutations import find_permutations
from ..files import read_json
from ..machine import process_state
from ..models.auto import load_autoencoder
from ..pipelines.network_folder import load_generated, load_statistics, write_networks
from .recipe import EvaluateConfig
from ..report.write import write_report
from ..results.metrics import TRAJECTORY_FILE
from .folder import GATE_FILE, RECIPE_FILE, Run, cost_since
from ..tasks.config import CollectConfig
from ..tasks.train_selection import fine_tune
from ..tasks.evaluators import load_stored_task
from ..tasks.task import Task
from ..training.gate import reconstruct
from typing import Any
from .recipe import GenerateConfig
from collections.abc import Mapping
from .folder import RECIPE_FILE
from .folder import Run
from .recipe import parse_config
import yaml
from ..evaluation.evaluator import ParameterEvaluator
from pathlib import Path
from ..pipelines.sampling import SCHEDULERS
from collections.abc import Sequence
from ..results.metrics import TRAJECTORY_FILE
from ..data.dataset import dataset_vectors
from ..data.dataset import load_base_model
from ..data.dataset import load_parameter_dataset
from ..pipelines.sampling import load_pipeline
from ..tasks.evaluators import load_stored_task
from ..report.plots.trajectory import plot_trajectory
from ..report.plots.trajectory import plot_trajectory_plane
import torch
from ..evaluation.trajectory import trajectory
from ..files import write_json

# What has to be done before there are generated networks.
GENERATOR_STAGES = ("autoencoder", "diffusion", "generate")
# Shown as points in the latent space.
LATENT_GROUPS = ("original", "generated", "average_16")


def evaluate_config(run: Run, seed: int | None = None, fine_tune: bool | None = None) -> EvaluateConfig:
    """The recipe's `evaluate` section if `run` has a recipe, else the defaults; what is given wins."""
    path = run.folder / RECIPE_FILE
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    given = {key: value for key, value in {"seed": seed, "fine_tune": fine_tune}.items() if value is not None}
    return EvaluateConfig.model_validate({**values.get("evaluate", {}), **given})


def generator_seconds(run: Run) -> float | None:
    """What the generated networks of a run cost, the checkpoints being there; `None` when the run does not know."""
    if not {"autoencoder", "diffusion"} <= run.stages.keys():
        return None
    return sum(run.stages[stage]["seconds"] for stage in GENERATOR_STAGES if stage in run.stages)


def fine_tune_run(
    run: Run,
    config: EvaluateConfig,
    task: Task,
    trusted_imports: Sequence[str] = (),
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Fine-tune the last checkpoint for as long as the generator took, as a stage of the run, once.

    Nothing is done without `config.fine_tune`, or when it is not known how the checkpoints were collected or what the
    generator took.
    """
    dataset_dir = run.path("collect")
    collection = read_json(dataset_dir / "stats.json")["metadata"].get("collect")
    seconds = generator_seconds(run)
    if not config.fine_tune or collection is None or seconds is None:
        return
    # Fine-tuned for the first time, later stages have made nothing of it yet, and stay.
    is_new = "fine_tune" not in run.stages

    def stage(path: Path) -> None:
        dataset, layout = load_parameter_dataset(dataset_dir)
        networks, steps = [], 0
        # One network is trained, by one process, while the others wait.
        if process_state().is_main_process:
            networks, steps = fine_tune(
                task,
                load_base_model(dataset_dir),
                layout,
                dataset_vectors(dataset, layout)[-1],
                CollectConfig.model_validate(collection),
                seconds=seconds,
                num=len(read_json(run.path("generate") / "index.json")["files"]),
                seed=config.seed,
                trusted_imports=trusted_imports,
            )
        write_networks(path, layout, map(layout.unflatten, networks), {"seconds": seconds, "steps": steps})

    run.do("fine_tune", stage, report, keep_later=is_new)


def evaluate_run(
    run: Run,
    config: EvaluateConfig,
    task: Task | None = None,
    trusted_imports: Sequence[str] = (),
    *,
    dataset_dir: Path | None = None,
    pipeline_dir: Path | None = None,
    generated_dir: Path | None = None,
    output_dir: Path | None = None,
) -> dict:
    """Evaluate originals, reconstructions, generated networks and baselines, and write the report anew.

    Started by `accelerate launch`, the processes share the networks, and the main one writes the report.

    Args:
        run ([`Run`]): Its folders are evaluated, and what its stages cost is reported.
        config ([`EvaluateConfig`]): Batches, memory and the seed of the baselines.
        task ([`Task`], *optional*): That of the dataset by default.
        trusted_imports (`Sequence[str]`, *optional*): See [`BaseModel.build`].
        dataset_dir, pipeline_dir, generated_dir, output_dir (`Path`, *optional*): Instead of the run's folders.

    Returns:
        `dict`: the content of `metrics.json`.

    Raises:
        ValueError: the dataset names no task or base model, a folder is missing or damaged, or `output_dir` holds
            something that is no report.
    """
    # 1. What is evaluated
    start = time.perf_counter()
    # What was made elsewhere cost nobody knows what.
    is_own = dataset_dir is None and pipeline_dir is None and generated_dir is None
    dataset_dir = dataset_dir or run.path("collect")
    output_dir = output_dir or run.path("evaluate")
    followed = output_dir / TRAJECTORY_FILE
    is_report = (output_dir / "metrics.json").is_file() or followed.is_file()
    if output_dir.exists() and not is_report and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"expected a new folder or an earlier report, found that {output_dir} is neither.")
    task = task or load_stored_task(dataset_dir)
    base_model = load_base_model(dataset_dir)
    if task is None or base_model is None:
        raise ValueError(f"{dataset_dir} names no {'task' if task is None else 'base model'}; evaluation needs both.")
    dataset, layout = load_parameter_dataset(dataset_dir)
    originals = dataset_vectors(dataset, layout)
    generated_dir = generated_dir or run.path("generate")
    generated, reestimated = load_generated(generated_dir, layout), load_statistics(generated_dir)
    autoencoder = load_autoencoder((pipeline_dir or run.path("diffusion")) / "autoencoder")
    model = base_model.build(trusted_imports)

    # 2. Groups, and what making them took
    state = process_state()
    if is_own:
        begin = time.perf_counter()
        fine_tune_run(run, config, task, trusted_imports)
        start += time.perf_counter() - begin
    # Two evaluators share the memory for activations.
    options = {"batch_size": config.batch_size, "device": state.device, "accelerator": state}
    options["max_cache_bytes"] = config.max_cache_mb * 2**20 // 2
    # BatchNorm statistics that belong to the generated networks come after their tensors; all others have the base's.
    reestimated = {name: values for name, values in reestimated.items() if values.is_floating_point()}
    whole = layout.extended(model, reestimated)
    rest = whole.flatten(model)[layout.num_parameters :]

    def with_rest(vectors: torch.Tensor) -> torch.Tensor:
        return torch.cat([vectors, rest.expand(len(vectors), -1)], 1)

    val = ParameterEvaluator(model, whole, *task.arrays("val"), **options)
    rows = torch.linspace(0, len(originals) - 1, min(len(originals), len(generated))).round().long()
    reconstructed = reconstruct(autoencoder, originals[rows])
    groups, seconds = build_groups(
        originals, generated, layout, reconstructed, lambda vectors: val.accuracy(with_rest(vectors)), config.seed
    )
    if is_own and (spent := generator_seconds(run)):
        seconds["generated"] = spent
        if run.is_complete("fine_tune"):
            groups["fine_tuned"], seconds["fine_tuned"] = load_generated(run.path("fine_tune"), layout), spent

    # 3. Protocol and report
    test = ParameterEvaluator(model, whole, *task.arrays("test"), **options)
    statistics = {name: rest.expand(len(vectors), -1) for name, vectors in groups.items()}
    if reestimated:
        statistics["generated"] = torch.cat([values.flatten(1) for values in reestimated.values()], 1)
    result = evaluate_groups(
        groups,
        val,
        test,
        permutations=find_permutations(model, layout),
        seconds=seconds,
        statistics=statistics,
        seed=config.seed,
    )
    result.metrics["seed"] = config.seed
    if state.is_main_process:
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
            latents={name: autoencoder.encode_rows(groups[name]).flatten(1).cpu() for name in LATENT_GROUPS},
            # Of networks from elsewhere it would be another pipeline's.
            trajectory=read_json(followed) if is_own and followed.is_file() else None,
        )
        shutil.rmtree(output_dir, ignore_errors=True)
        partial.rename(output_dir)
    state.wait_for_everyone()
    return read_json(output_dir / "metrics.json")


def generate_config(run: Run, overrides: Mapping[str, Any] | None = None) -> GenerateConfig:
    """The recipe's `generate` section if `run` has a recipe, else the defaults; `overrides` win.

    Raises:
        ValueError: a value is not valid.
    """
    path = run.folder / RECIPE_FILE
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return parse_config(GenerateConfig, {**values.get("generate", {}), **(overrides or {})})


def trajectory_run(
    run: Run, config: GenerateConfig, num_starts: int = 5, trusted_imports: Sequence[str] = ()
) -> tuple[dict[str, Any], list[Path]]:
    """Follow networks of a run from noise to the end, and write data and figures into its report folder.

    Args:
        run ([`Run`]): With a dataset and a pipeline.
        config ([`GenerateConfig`]): Scheduler, steps and seed; `num_samples` and `truncation` do not matter here.
        num_starts (`int`, *optional*, defaults to 5): Number of networks.
        trusted_imports (`Sequence[str]`, *optional*): See [`BaseModel.build`].

    Returns:
        `tuple`: what [`trajectory`] finds, and the files written.

    Raises:
        ValueError: a folder is missing or damaged, or the dataset names no task or base model.
    """
    dataset_dir = run.path("collect")
    pipe = load_pipeline(run.path("diffusion"))
    pipe.scheduler = SCHEDULERS[config.scheduler].from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(desc="trajectory", leave=False)
    dataset, layout = load_parameter_dataset(dataset_dir)
    task, base_model = load_stored_task(dataset_dir), load_base_model(dataset_dir)
    if task is None or base_model is None:
        raise ValueError(f"{dataset_dir} names no {'task' if task is None else 'base model'}; networks need both.")
    options = evaluate_config(run)
    evaluator = ParameterEvaluator(
        base_model.build(trusted_imports),
        layout,
        *task.arrays("test"),
        batch_size=options.batch_size,
        device=torch.accelerator.current_accelerator(check_available=True) or "cpu",
        max_cache_bytes=options.max_cache_mb * 2**20,
    )
    found = trajectory(
        pipe, evaluator, dataset_vectors(dataset, layout), num_starts, config.num_inference_steps, config.seed
    )
    folder = run.path("evaluate")
    folder.mkdir(exist_ok=True)
    write_json(folder / TRAJECTORY_FILE, found)
    plots = [plot_trajectory(found), plot_trajectory_plane(found)]
    return found, [folder / TRAJECTORY_FILE, *(plot.save_png(folder) for plot in plots)]
