"""The memorisation audit: generators trained on the first K checkpoints of a run, for several K."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import yaml

from .composition import apply_override
from ..data.dataset import dataset_vectors, load_base_model, load_parameter_dataset, read_layout
from ..data.writer import copy_first_rows
from .audit_tables import AUDIT_GROUPS, summarize_audit, write_audit
from ..evaluation.evaluate import evaluate_groups
from ..evaluation.evaluator import ParameterEvaluator
from ..evaluation.groups import BASELINES
from ..files import read_json
from .generate import generate_networks
from ..pipelines.sampling import load_pipeline
from ..machine import process_state
from ..data.vectors import split_rows
from ..models.config import fit_latents
from ..pipelines.network_folder import load_generated
from .recipe import EvaluateConfig, GenerateConfig, TrainingRecipe, parse_config
from ..report.write import write_report
from .stages import autoencoder_stage, check_training, diffusion_stage
from .folder import GATE_FILE, RECIPE_FILE, Run, begin_run, open_run
from ..tasks.evaluators import load_stored_task
from ..tasks.task import Task


class AuditRecipe(TrainingRecipe):
    """What an audit does to the first K checkpoints of a dataset; the recipe of its folder for K."""

    num_checkpoints: int
    generate: GenerateConfig
    evaluate: EvaluateConfig


def audit_recipe(source: str | Path, overrides: Sequence[str] = (), seed: int | None = None) -> AuditRecipe:
    """What an audit of a run does: with the run's own hyper-parameters, or the defaults for a dataset alone.

    Args:
        source (`str` or `Path`): Folder of a run, or of a parameter dataset.
        overrides (`Sequence[str]`, *optional*): `"section.key=value"` with a YAML value each.
        seed (`int`, *optional*): Of every section.

    Raises:
        ValueError: neither is there, or a key or value is wrong.
    """
    path, sections = Path(source), ("autoencoder", "diffusion", "generate", "evaluate")
    stored = path / RECIPE_FILE
    found = yaml.safe_load(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    values = {name: found.get(name, {}) for name in sections}
    dataset = path if (path / "layout.json").is_file() else Run(path).path("collect")
    # An error is better now than after the first training.
    read_layout(dataset)
    for override in overrides:
        apply_override(values, override)
    if seed is not None:
        values = {name: {**section, "seed": seed} for name, section in values.items()}
    return parse_config(AuditRecipe, {"dataset": str(dataset.resolve()), "num_checkpoints": 2, **values})


def audit(
    recipe: AuditRecipe,
    counts: Sequence[int],
    output_dir: str | Path,
    trusted_imports: Sequence[str] = (),
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train a generator on the first K checkpoints for every K, and compare its networks with these checkpoints.

    Every K has a run of its own in `output_dir/K-…`, whose complete stages are skipped. All of them are evaluated on
    the same images, with as many draws of every baseline, and with checkpoints that the generator has not seen. The
    gate is measured but stops nothing, and latents shrink for small K, see [`fit_latents`]. Started by `accelerate
    launch`, the processes share the work.

    Args:
        recipe ([`AuditRecipe`]): Dataset and hyper-parameters; its `num_checkpoints` is replaced.
        counts (`Sequence[int]`): Every K.
        output_dir (`str` or `Path`): Folder, new or begun by the same audit.
        trusted_imports (`Sequence[str]`, *optional*): See [`BaseModel.build`].
        report (`Callable`, *optional*): Receives a line of text after every stage.

    Returns:
        `dict`: content of `audit.json`.

    Raises:
        ValueError: a K that is too small or larger than the dataset, a dataset without task or base model, or another
            audit in the folder. Nothing is trained then.
    """
    # 1. All that can be wrong
    dataset, layout = load_parameter_dataset(recipe.dataset)
    task = load_stored_task(recipe.dataset)
    if task is None or load_base_model(recipe.dataset) is None:
        missing = "task" if task is None else "base model"
        raise ValueError(f"{recipe.dataset} names no {missing}; an audit evaluates networks and needs both.")
    counts = sorted(set(counts))
    if not counts or counts[-1] > len(dataset):
        raise ValueError(f"expected numbers of checkpoints up to {len(dataset)}, found {counts}; collect more.")
    runs: dict[int, tuple[AuditRecipe, Run]] = {}
    for count in counts:
        train_rows, _ = split_rows(count, recipe.autoencoder.holdout_every)
        autoencoder = fit_latents(recipe.autoencoder, recipe.diffusion, len(train_rows))
        autoencoder = autoencoder.model_copy(update={"allow_poor_reconstruction": True})
        check_training(layout, count, autoencoder, recipe.diffusion)
        own = recipe.model_copy(update={"num_checkpoints": count, "autoencoder": autoencoder})
        runs[count] = own, open_run(own, Path(output_dir) / f"K-{count:04d}")

    # 2. Train, draw, evaluate
    evaluators = cache(partial(_make_evaluator, recipe, task, trusted_imports))
    for count, (own, run) in runs.items():
        begin_run(own, run)

        def tell(text: str, count: int = count) -> None:
            report(f"K = {count}, {text}")

        _make_networks(own, run, task, trusted_imports, tell)
        run.do("evaluate", partial(_evaluate, own, run, dataset_vectors(dataset, layout), evaluators), tell)

    # 3. All of them together
    results = {
        count: (read_json(run.path("evaluate") / "metrics.json"), read_json(run.path("autoencoder") / GATE_FILE))
        for count, (_, run) in runs.items()
    }
    configs = {count: own.autoencoder for count, (own, _) in runs.items()}
    latents = {count: (config.latent_channels, config.latent_length) for count, config in configs.items()}
    found = summarize_audit(results, latents, task.describe())
    if process_state().is_main_process:
        write_audit(found, output_dir)
    return found


def _make_networks(
    recipe: AuditRecipe,
    run: Run,
    task: Task,
    trusted_imports: Sequence[str],
    report: Callable[[str], None],
) -> None:
    """The stages up to the generated networks."""
    dataset, autoencoder = run.path("collect"), run.path("autoencoder")

    def copy_rows(path: Path) -> None:
        if process_state().is_main_process:
            copy_first_rows(recipe.dataset, path, recipe.num_checkpoints)

    run.do("collect", copy_rows, report)
    run.do(
        "autoencoder",
        lambda path: autoencoder_stage(dataset, path, recipe.autoencoder, task, trusted_imports),
        report,
    )
    run.do("diffusion", lambda path: diffusion_stage(dataset, autoencoder, path, recipe.diffusion), report)
    pipeline = run.path("diffusion")
    run.do(
        "generate",
        lambda path: generate_networks(
            load_pipeline(pipeline), path, dataset_dir=dataset, **recipe.generate.model_dump()
        ),
        report,
    )


def _make_evaluator(recipe: AuditRecipe, task: Task, trusted_imports: Sequence[str], split: str) -> ParameterEvaluator:
    """On the val or test images, the same for every K."""
    layout, base_model = read_layout(recipe.dataset)
    options = {
        "batch_size": recipe.evaluate.batch_size,
        "max_cache_bytes": recipe.evaluate.max_cache_mb * 2**20 // 2,
        "device": process_state().device,
        "accelerator": process_state(),
    }
    return ParameterEvaluator(base_model.build(trusted_imports), layout, *task.arrays(split), **options)


def _evaluate(
    recipe: AuditRecipe,
    run: Run,
    everything: torch.Tensor,
    evaluator: Callable[[str], ParameterEvaluator],
    output_dir: Path,
) -> None:
    layout = evaluator("test").layout
    originals, unseen = everything[: recipe.num_checkpoints], everything[recipe.num_checkpoints :]
    generated = load_generated(run.path("generate"), layout)
    groups = {"original": originals, "generated": generated}
    if len(unseen):
        rows = torch.linspace(0, len(unseen) - 1, min(len(unseen), len(generated))).round().long()
        groups["unseen"] = unseen[rows]
    for name in AUDIT_GROUPS:
        if name in BASELINES:
            generator = torch.Generator().manual_seed(recipe.evaluate.seed)
            groups[name] = BASELINES[name](originals, layout, len(generated), generator)
    result = evaluate_groups(groups, evaluator("val"), evaluator("test"), seed=recipe.evaluate.seed)
    result.metrics["seed"] = recipe.evaluate.seed
    logs = {stage: run.path(stage) / "train_log.jsonl" for stage in ("autoencoder", "diffusion")}
    if not process_state().is_main_process:
        return
    write_report(
        result,
        output_dir,
        task=load_stored_task(recipe.dataset).describe(),
        timings_s={stage: cost["seconds"] for stage, cost in run.stages.items()},
        peak_rss_mb={stage: cost["peak_rss_mb"] for stage, cost in run.stages.items()},
        gate=read_json(run.path("autoencoder") / GATE_FILE),
        logs={stage: path for stage, path in logs.items() if path.is_file()},
    )
