"""A whole run: each stage reads the folder of the stage before it and writes its own; complete ones are skipped."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from accelerate.utils import set_seed

from .data.dataset import dataset_vectors, load_base_model, load_parameter_dataset
from .evaluation import build_groups, evaluate_groups, write_report
from .files import atomic_write, read_json, write_json
from .generation import generate_networks, load_generated, load_pipeline
from .hub.cards import write_pipeline_card
from .models import load_autoencoder
from .recipe import EvaluateConfig, Recipe
from .tasks import ImageClassification, collect_checkpoints, train_base_model
from .tasks.stored import load_stored_task, make_val_evaluator
from .training import AutoencoderConfig, DiffusionConfig, train_autoencoder, train_diffusion
from .training.gate import reconstruct

RECIPE_FILE = "recipe.yaml"
STATE_FILE = "run.json"

# Stage → the folder it writes.
STAGES = {
    "collect": "dataset",
    "autoencoder": "autoencoder",
    "diffusion": "pipeline",
    "generate": "generated",
    "evaluate": "report",
}


class Run:
    """A run folder: which stages are complete, how long they took and how much memory they needed."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / STATE_FILE
        self.stages: dict[str, dict[str, float]] = read_json(path)["stages"] if path.is_file() else {}

    def path(self, stage: str) -> Path:
        """Folder that `stage` writes."""
        return self.folder / STAGES[stage]

    def is_complete(self, stage: str) -> bool:
        """Whether `stage` has finished and its folder is still there."""
        return stage in self.stages and self.path(stage).is_dir()

    def do(self, stage: str, function: Callable[[Path], object], report: Callable[[str], None]) -> None:
        """Run `function` on the stage's folder unless the stage is complete, and note what it cost."""
        if self.is_complete(stage):
            report(f"{stage}: complete, skipped ({self.path(stage)})")
            return
        start = time.perf_counter()
        function(self.path(stage))
        seconds = time.perf_counter() - start
        # Kilobytes on Linux, bytes on macOS; the peak of the process up to here.
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        self.stages[stage] = {"seconds": round(seconds, 3), "peak_rss_mb": round(peak, 1)}
        write_json(self.folder / STATE_FILE, {"schema": 1, "stages": self.stages})
        report(f"{stage}: {seconds:.1f} s → {self.path(stage)}")


def open_run(recipe: Recipe, folder: str | Path) -> Run:
    """Open a new run folder, or one that the same recipe has begun.

    Raises:
        ValueError: the folder holds another run or other files; nothing in it is touched.
    """
    folder = Path(folder)
    wanted = recipe.model_dump(mode="json")
    path = folder / RECIPE_FILE
    if path.is_file():
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if found != wanted:
            raise ValueError(f"{folder} holds another run: {_first_difference(found, wanted)}. Choose another --out.")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is no run of pdiff; choose a new or empty folder.")
    else:
        with atomic_write(path) as temporary:
            temporary.write_text(yaml.safe_dump(wanted, sort_keys=False), encoding="utf-8")
    return Run(folder)


def _first_difference(found: object, wanted: object, path: str = "") -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *found]:
            if found.get(key) != wanted.get(key):
                return _first_difference(found.get(key), wanted.get(key), f"{path}.{key}".lstrip("."))
    return f"its {path or 'recipe'} is {found!r}, expected {wanted!r}"


def run_recipe(recipe: Recipe, folder: str | Path, report: Callable[[str], None] = lambda line: None) -> dict:
    """Carry out all stages of a recipe and return the content of `metrics.json`.

    Args:
        recipe ([`Recipe`]): Validated.
        folder (`str` or `Path`): New, or begun by the same recipe: then it goes on where it stopped.
        report (`Callable`, *optional*): Receives a line of text after every stage.

    Raises:
        ValueError: bad input, another run in the folder, or an autoencoder that misses the gate.
    """
    # Before the folder is touched: a recipe whose images are missing leaves no trace.
    task = ImageClassification(recipe.task, recipe.base_model.reference())
    run = open_run(recipe, folder)
    dataset, pipeline = run.path("collect"), run.path("diffusion")

    run.do("collect", lambda path: collect(recipe, path, task), report)
    run.do("autoencoder", lambda path: autoencoder_stage(dataset, path, recipe.autoencoder, task), report)
    run.do("diffusion", lambda path: diffusion_stage(dataset, run.path("autoencoder"), path, recipe.diffusion), report)

    run.do(
        "generate",
        lambda path: generate_networks(load_pipeline(pipeline), path, **recipe.generate.model_dump()),
        report,
    )

    def evaluate(path: Path) -> None:
        evaluate_networks(dataset, pipeline, run.path("generate"), path, recipe.evaluate, task, run)

    run.do("evaluate", evaluate, report)
    metrics = _add_costs(run)
    write_pipeline_card(pipeline, metrics)
    return metrics


def _add_costs(run: Run) -> dict:
    """Enter the last stage's own cost, known only now, into `metrics.json`."""
    path = run.path("evaluate") / "metrics.json"
    metrics = read_json(path)
    metrics["timings_s"] = {stage: cost["seconds"] for stage, cost in run.stages.items()}
    metrics["peak_rss_mb"] = {stage: cost["peak_rss_mb"] for stage, cost in run.stages.items()}
    write_json(path, metrics)
    return metrics


def collect(recipe: Recipe, output_dir: Path, task: ImageClassification | None = None) -> dict:
    """Train the base model and collect checkpoints into a parameter dataset."""
    if task is None:
        task = ImageClassification(recipe.task, recipe.base_model.reference())
    set_seed(recipe.base_training.seed)
    reference = recipe.base_model.reference()
    model = reference.build(recipe.base_model.trusted_imports)
    train_base_model(task, model, recipe.base_training)
    return collect_checkpoints(
        task, reference, model, recipe.base_training, recipe.collect, output_dir, seed=recipe.seed
    )


def autoencoder_stage(
    dataset_dir: Path, output_dir: Path, config: AutoencoderConfig, task: ImageClassification | None
) -> dict:
    """Train the autoencoder, from its last checkpoint if there is one, and pass the gate."""
    evaluator = make_val_evaluator(dataset_dir, task)
    return train_autoencoder(dataset_dir, output_dir, config, evaluator, resume_from_checkpoint="latest")[1]


def diffusion_stage(dataset_dir: Path, autoencoder_dir: Path, output_dir: Path, config: DiffusionConfig) -> None:
    """Train the denoiser, from its last checkpoint if there is one, and save the pipeline."""
    autoencoder = load_autoencoder(autoencoder_dir)
    train_diffusion(dataset_dir, autoencoder, output_dir, config, resume_from_checkpoint="latest")


def train_stages(
    dataset_dir: Path, output_dir: Path, autoencoder: AutoencoderConfig, diffusion: DiffusionConfig
) -> dict:
    """Both training stages on a parameter dataset; returns the reconstruction report."""
    load_parameter_dataset(dataset_dir)
    task = load_stored_task(dataset_dir)
    report = autoencoder_stage(dataset_dir, output_dir / "autoencoder", autoencoder, task)
    diffusion_stage(dataset_dir, output_dir / "autoencoder", output_dir / "pipeline", diffusion)
    return report


def evaluate_networks(
    dataset_dir: Path,
    pipeline_dir: Path,
    generated_dir: Path,
    output_dir: Path,
    config: EvaluateConfig,
    task: ImageClassification | None = None,
    run: Run | None = None,
) -> dict:
    """Evaluate originals, reconstructions, generated networks and baselines, and write the report.

    Raises:
        ValueError: the dataset names no task or base model, or a folder is missing or damaged.
    """
    task = task or load_stored_task(dataset_dir)
    base_model = load_base_model(dataset_dir)
    if task is None or base_model is None:
        raise ValueError(f"{dataset_dir} names no {'task' if task is None else 'base model'}; evaluation needs both.")
    dataset, layout = load_parameter_dataset(dataset_dir)
    originals = dataset_vectors(dataset, layout)
    generated = load_generated(generated_dir, layout)
    autoencoder = load_autoencoder(Path(pipeline_dir) / "autoencoder")
    groups = build_groups(originals, generated, layout, reconstruct(autoencoder, originals), seed=config.seed)
    result = evaluate_groups(
        groups,
        base_model.build(),
        layout,
        val=task.arrays("val"),
        test=task.arrays("test"),
        batch_size=config.batch_size,
        device=torch.accelerator.current_accelerator(check_available=True),
        max_cache_bytes=config.max_cache_mb * 2**20,
    )
    stages = run.stages if run is not None else {}
    training = {"autoencoder": Path(dataset_dir).parent / "autoencoder", "diffusion": Path(pipeline_dir)}
    logs = {name: path / "train_log.jsonl" for name, path in training.items()}
    gate = training["autoencoder"] / "reconstruction.json"
    partial = output_dir.with_name(f".{output_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_report(
        result,
        partial,
        task=task.describe(),
        timings_s={stage: cost["seconds"] for stage, cost in stages.items()},
        peak_rss_mb={stage: cost["peak_rss_mb"] for stage, cost in stages.items()},
        gate=read_json(gate) if gate.is_file() else None,
        logs={name: path for name, path in logs.items() if path.is_file()},
    )
    shutil.rmtree(output_dir, ignore_errors=True)
    partial.rename(output_dir)
    return read_json(output_dir / "metrics.json")
