"""Evaluation of what a run has made: groups, protocol, report; and its networks on their way out of noise."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..data.dataset import ParameterDataset
from ..data.vectors import take_rows
from ..evaluation.autocorrelation import RunMemory
from ..evaluation.baselines import latent_gaussian
from ..evaluation.batch_norm import Reestimated
from ..evaluation.evaluate import evaluate_groups
from ..evaluation.groups import is_shown
from ..evaluation.population import unseen_runs
from ..evaluation.scores import NetworkEvaluator
from ..files import atomic_folder, read_json
from ..identity import OTHER_DATASET, check_same_network, generated_identity, read_identity
from ..layout import ParameterLayout
from ..machine import locked_together, precision_of, process_state
from ..models.auto import load_autoencoder
from ..pipelines.network_folder import load_generated, load_statistics, write_networks
from ..report.write import write_report, write_task_report
from ..results.metrics import METRICS_FILE, TRAJECTORY_FILE, Metrics, read_denoiser
from ..results.records import Denoiser
from ..tasks.conditions import have_own_tasks
from ..tasks.evaluators import AnyTask, make_val_and_test, require_task
from ..tasks.runs_config import fine_tuning_config
from ..tasks.task import Task
from ..tasks.train_selection import fine_tune
from ..training.rows import read_holdout_every
from .folder import GATE_FILE, PEAK_ON_DEVICE, Run, check_report_folder, cost_since
from .groups import add_own_groups, common_start, generator_seconds, known_permutations, make_groups
from .held_out import held_out_of
from .latents import compare_latents, fitted_gaussian, take_seen
from .merges import merge_adapters
from .names import network_names
from .recipe import EvaluateConfig
from .rivals import make_rivals
from .unseen_tasks import check_tasks, evaluate_tasks, task_latents


def fine_tune_run(
    run: Run,
    dataset: ParameterDataset,
    config: EvaluateConfig,
    task: AnyTask,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Fine-tune the last checkpoint that was seen for as long as the generator took, as a stage of the run, once.

    Not without `config.fine_tune` or examples to train on, of several populations, or when it is not known how
    checkpoints were collected or what the generator took.
    """
    how, seconds = fine_tuning_config(dataset.metadata), generator_seconds(run)
    if not config.fine_tune or not isinstance(task, Task) or how is None or seconds is None:
        return
    # Fine-tuned for the first time, later stages have made nothing of it yet, and stay.
    is_new = "fine_tune" not in run.stages

    def stage(path: Path) -> None:
        networks, steps = [], 0
        # One network is trained, by one process, while the others wait.
        if process_state().is_main_process:
            networks, steps = fine_tune(
                task,
                dataset.base_model,
                dataset.layout,
                take_seen(dataset.vectors(), read_holdout_every(run.path("diffusion")))[-1:][0],
                how,
                seconds=seconds,
                num=len(read_json(run.path("generate") / "index.json")["files"]),
                seed=config.seed,
            )
        write_networks(
            path,
            dataset.layout,
            map(dataset.layout.unflatten, networks),
            {**dataset.identity.to_dict(), "seconds": seconds, "steps": steps},
            base_model=dataset.base_model,
        )

    run.do("fine_tune", stage, report, keep_later=is_new)


@precision_of("evaluation")
def evaluate_run(
    run: Run,
    config: EvaluateConfig,
    dataset: ParameterDataset | None = None,
    task: AnyTask | None = None,
    *,
    pipeline_dir: Path | None = None,
    generated_dir: Path | None = None,
    output_dir: Path | None = None,
) -> Metrics:
    """Evaluate originals, reconstructions, generated networks and baselines, and write the report anew.

    Started by `accelerate launch`, the processes share the networks, and the main one writes the report.

    Args:
        run ([`Run`]): Its folders are evaluated, and what its stages cost is reported.
        config ([`EvaluateConfig`]): Batches, memory and the seed of the baselines.
        dataset, task (*optional*): Those of the run by default.
        pipeline_dir, generated_dir, output_dir (`Path`, *optional*): Instead of the run's folders.

    Raises:
        ValueError: the dataset names no task or base model, a folder is missing or damaged, or `output_dir` holds
            something that is no report.
    """
    start = time.perf_counter()
    dataset = dataset or ParameterDataset(run.path("collect"))
    # Of what was made elsewhere, nobody knows the cost.
    is_own = dataset.folder == run.path("collect") and pipeline_dir is None and generated_dir is None
    pipeline_dir, generated_dir = pipeline_dir or run.path("diffusion"), generated_dir or run.path("generate")
    check_same_network(dataset.identity, read_identity(pipeline_dir), OTHER_DATASET)
    advice = "give networks generated by a pipeline of this dataset"
    check_same_network(dataset.identity, generated_identity(generated_dir), advice)
    with ExitStack() as held:
        # A run that is only read may be where nobody can write.
        if output_dir is None or (is_own and config.fine_tune and not run.is_complete("fine_tune")):
            held.enter_context(locked_together(run.folder))
        output_dir = output_dir or run.path("evaluate")
        held.enter_context(locked_together(output_dir, beside=True))
        check_report_folder(output_dir)
        return _evaluate(run, config, dataset, task, pipeline_dir, generated_dir, output_dir, start, is_own)


def _evaluate(
    run: Run,
    config: EvaluateConfig,
    dataset: ParameterDataset,
    task: AnyTask | None,
    pipeline_dir: Path | None,
    generated_dir: Path | None,
    output_dir: Path,
    start: float,
    is_own: bool,
) -> Metrics:
    # 1. What is evaluated
    task = task or require_task(dataset)
    if have_own_tasks(dataset, task):
        check_tasks(dataset)
        seconds = generator_seconds(run) if is_own else None
        metrics = evaluate_tasks(dataset, task, config, pipeline_dir, generated_dir, seconds)
        if process_state().is_main_process:
            if (denoiser := read_denoiser(pipeline_dir)) != Denoiser():
                metrics.denoiser = denoiser
            latents = task_latents(dataset, task, pipeline_dir, generated_dir)
            _report(run, partial(write_task_report, metrics, latents=latents), output_dir, start, task)
        process_state().wait_for_everyone()
        return Metrics.read(output_dir / METRICS_FILE)
    device = process_state().device
    originals = dataset.vectors()
    generated = load_generated(generated_dir, dataset.layout)
    autoencoder = load_autoencoder(pipeline_dir / "autoencoder", device)
    if is_own:
        begin = time.perf_counter()
        fine_tune_run(run, dataset, config, task)
        start += time.perf_counter() - begin

    # 2. Groups, and what making them took
    model = dataset.base_model.build()
    if autoencoder.needs_network:
        autoencoder.connect(model)
    networks = Reestimated(model, dataset.layout, load_statistics(generated_dir))
    # Two evaluators share the memory for activations.
    options = {"batch_size": config.batch_size, "max_cache_bytes": config.max_cache_mb * 2**20 // 2}
    val, test = make_val_and_test(dataset, task, model=model, layout=networks.layout, **options)
    holdout_every = read_holdout_every(pipeline_dir)
    seen = take_seen(originals, holdout_every)
    draw_latents = partial(latent_gaussian, fitted_gaussian(pipeline_dir, autoencoder, seen), autoencoder)
    memory = RunMemory.measure(originals, dataset.order, autoencoder.normalizer)
    apart = unseen_runs(memory, holdout_every)
    permutations = known_permutations(model, dataset.layout, is_zoo=apart is not None)
    cost_of_generated = generator_seconds(run) if is_own else None
    # What is chosen by the scores that are reported would be flattered.
    val_worth = None if test is val else lambda vectors: val.worth(networks.extend(vectors))
    groups = make_groups(
        originals,
        generated,
        autoencoder,
        draw_latents,
        val_worth,
        apart,
        permutations,
        config.seed,
        cost_of_generated,
        common_start(dataset, model),
    )
    if apart is not None and autoencoder.needs_network:
        given = (originals, dataset.layout, apart[0], holdout_every, len(generated), permutations, config.seed)
        rivals, seconds = make_rivals(config.rivals, *given)
        for name, vectors in rivals.items():
            groups.give(name, vectors)
        groups.seconds |= seconds
    merges = merge_adapters(
        dataset, originals if apart is None else take_rows(originals, apart[0]), val_worth, config.seed
    )
    if merges is not None:
        merges.give_to(groups)
    n_effective: dict[str, float] = {}
    if is_own:
        add_own_groups(run, dataset, groups, n_effective, autoencoder.normalizer)

    # 3. Protocol and report
    result = evaluate_groups(
        groups,
        val,
        test,
        memory=memory,
        permutations=permutations,
        seconds=groups.seconds,
        chosen=groups.chosen,
        extend=networks.extend,
        n_effective=n_effective,
        apart=apart,
        seed=config.seed,
        device=device,
    )
    if merges is not None:
        judge = partial(_judge, dataset, task, options)
        on_test = test.predict(networks.extend(generated, "generated"))
        result.metrics.merges = merges.results(result.metrics, judge, on_test)
    found = held_out_of(pipeline_dir, dataset, autoencoder, originals, config.held_out)
    if process_state().is_main_process:
        if (denoiser := read_denoiser(pipeline_dir)) != Denoiser():
            denoiser.held_out |= found
            result.metrics.denoiser = denoiser
        if holdout_every is not None:
            given = (seen, generated, draw_latents, originals, autoencoder, holdout_every)
            result.metrics.distribution = compare_latents(*given, memory.effective_size, config.seed)
        shown = [name for name in groups if is_shown(name, "latents")]
        latents = {name: autoencoder.encode_rows(groups[name]).flatten(1).cpu() for name in shown}
        followed = output_dir / TRAJECTORY_FILE
        # Of networks from elsewhere it would be another pipeline's.
        trajectory = read_json(followed) if is_own and followed.is_file() else None
        names = network_names(dataset, generated_dir)
        write = partial(write_report, result, latents=latents, names=names, trajectory=trajectory)
        _report(run, write, output_dir, start, task)
    process_state().wait_for_everyone()
    return Metrics.read(output_dir / METRICS_FILE)


def _judge(
    dataset: ParameterDataset, task: AnyTask, options: dict[str, Any], model: nn.Module, layout: ParameterLayout
) -> tuple[NetworkEvaluator, NetworkEvaluator]:
    return make_val_and_test(dataset, task, model=model, layout=layout, **options)


def _report(run: Run, write: Callable[..., Any], output_dir: Path, start: float, task: AnyTask) -> None:
    """Write the report of an evaluation that began at `start`, with what the stages before it have cost and logged."""
    costs = {**run.stages, "evaluate": cost_since(start)}
    logs = {stage: run.path(stage) / "train_log.jsonl" for stage in ("autoencoder", "diffusion")}
    gate = run.path("autoencoder") / GATE_FILE
    with atomic_folder(output_dir, replace=True) as folder:
        write(
            folder,
            task=task.describe(),
            timings_s={stage: cost["seconds"] for stage, cost in costs.items()},
            peak_rss_mb={stage: cost["peak_rss_mb"] for stage, cost in costs.items()},
            peak_device_mb={stage: cost[PEAK_ON_DEVICE] for stage, cost in costs.items() if PEAK_ON_DEVICE in cost},
            gate=read_json(gate) if gate.is_file() else None,
            logs={stage: path for stage, path in logs.items() if path.is_file()},
        )
