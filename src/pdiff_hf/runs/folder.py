"""Run folders: what made them, which stages are complete and what they cost; and what any artefact folder is."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel as PydanticModel
from pydantic import ValidationError

from ..conditions import ConditionSpec, conditions_text
from ..files import atomic_folder, atomic_write, link_or_copy, read_json, read_object, write_json
from ..locks import LOCK_FILE
from ..machine import device_peak, peak_memory, process_state
from ..models.auto import SECTIONS as MODEL_SECTIONS
from ..progress import current_watcher
from ..sections import without_foreign_keys
from ..strict_yaml import read_mapping
from ..tasks.runs_config import COLLECT
from ..wording import argument

if TYPE_CHECKING:
    from ..results.metrics import Metrics

RECIPE_FILE, STATE_FILE, GATE_FILE = "recipe.yaml", "run.json", "reconstruction.json"

# Stage → the folder it writes.
STAGES = {
    "collect": "dataset",
    "autoencoder": "autoencoder",
    "diffusion": "pipeline",
    "generate": "generated",
    "fine_tune": "fine_tuned",
    "evaluate": "report",
}
# What a training on a dataset that is already there writes.
TRAINED = tuple(name for stage, name in STAGES.items() if stage != "collect")
# Later checkpoints of the run's own collection, which its generator was not given; of runs of an ablation.
UNSEEN = "unseen"
# What a stage has cost, on an accelerator alone.
PEAK_ON_DEVICE = "peak_device_mb"
# These folders get their name when they are complete; those of the training stages hold checkpoints before.
NAMED_WHEN_COMPLETE = ("collect", "generate", "fine_tune")
# Sections of a recipe that come in kinds.
SECTIONS = {"collect": COLLECT, **MODEL_SECTIONS}
# What a recorded recipe means that lacks these keys: it is older than they are, and presets have changed.
RECORDED_WITHOUT = {"autoencoder": {"latent_whitening": None}, "diffusion": {"kind": "unet_1d"}}
# Sections of the recipe that nothing before the gate depends on.
AFTER_COLLECTION = ("autoencoder", "diffusion", "generate", "evaluate")


def describe(path: str | Path) -> dict[str, Any]:
    """Describe a run, parameter dataset, autoencoder, pipeline, generated or report folder.

    Raises:
        ValueError: the folder is none of these.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"expected a folder, {path} does not exist or is a file.")
    try:
        return _describe(path)
    except (AttributeError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: a JSON file in it is not as pdiff writes it ({reason}); restore it.") from error


def _describe(path: Path) -> dict[str, Any]:
    if (path / RECIPE_FILE).is_file():
        run = Run(path)
        return {
            "kind": "run",
            "complete": ", ".join(stage for stage in STAGES if run.is_complete(stage)),
            "seconds": round(sum(cost["seconds"] for cost in run.stages.values()), 1),
        }
    if (path / "layout.json").is_file():
        layout, stats = read_json(path / "layout.json"), read_json(path / "stats.json")
        return {
            "kind": "parameter dataset",
            "checkpoints": stats["num_rows"],
            "runs": ", ".join(stats["runs"]),
            "parameters": layout["num_parameters"],
            "tensors": ", ".join(tensor["name"] for tensor in layout["tensors"]),
            "base_model": (layout["base_model"] or {}).get("name"),
            "test_accuracy": stats["columns"].get("test_accuracy", {}).get("mean"),
            "conditions": conditions_text(stats["conditions"]) if "conditions" in stats else None,
            "fingerprint": layout["fingerprint"],
        }
    if (path / "model_index.json").is_file():
        index, autoencoder = read_json(path / "model_index.json"), read_json(path / "autoencoder" / "config.json")
        encoder = path / "condition_encoder" / "config.json"
        return {
            "kind": "pipeline",
            "autoencoder": autoencoder["_class_name"],
            "latents": [autoencoder["latent_channels"], autoencoder["latent_length"]],
            "scheduler": index["scheduler"][1],
            "parameters": autoencoder["layout"]["num_parameters"],
            "base_model": (index.get("base_model") or {}).get("name"),
            **({"conditions": ConditionSpec.from_dict(read_json(encoder)).summary} if encoder.is_file() else {}),
        }
    # Here and below: the models of a report take as long as those of a recipe.
    from ..results.metrics import METRICS_FILE, Metrics

    if (path / METRICS_FILE).is_file():
        metrics = Metrics.read(path / METRICS_FILE)
        means = {name: round(group.score.mean, 4) for name, group in metrics.groups.items()}
        if metrics.tasks is not None:
            means = {name: round(group.accuracy, 4) for name, group in metrics.tasks.unseen.items()}
        return {"kind": "report", "verdict": metrics.verdict, f"test_{metrics.metric.name}": means}
    if (path / "index.json").is_file():
        index = read_json(path / "index.json")
        files, _, base = (index.pop(key, None) for key in ("files", "rest", "base_model"))
        return {"kind": "generated networks", "networks": len(files), "base_model": (base or {}).get("name"), **index}
    if (path / "config.json").is_file():
        config = read_json(path / "config.json")
        if "layout" in config and "_class_name" in config:
            gate = path / GATE_FILE
            described = {"kind": "autoencoder", "class": config["_class_name"]}
            return described | (read_json(gate) if gate.is_file() else {})
    raise ValueError(f"{path} is no run, parameter dataset, autoencoder, pipeline, generated or report folder.")


def _read_stages(path: Path) -> dict[str, dict[str, float]]:
    stages = read_object(path, stages=dict).get("stages")
    if stages is None or not all(isinstance(cost, dict) for cost in stages.values()):
        raise ValueError(f"{path}: expected 'stages' with their costs, found {stages!r:.200}; restore it from a copy.")
    return stages


class Run:
    """A run folder: which stages are complete, how long they took and how much memory they needed."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / STATE_FILE
        self.stages = _read_stages(path) if path.is_file() else {}

    def path(self, stage: str) -> Path:
        """Folder that `stage` writes."""
        return self.folder / STAGES[stage]

    def is_complete(self, stage: str) -> bool:
        """Whether `stage` has finished and its folder is still there."""
        return self.path(stage).is_dir() and (stage in self.stages or stage in NAMED_WHEN_COMPLETE)

    def is_refused(self) -> bool:
        """Whether the gate has refused the autoencoder."""
        path = self.path("autoencoder") / GATE_FILE
        return not self.is_complete("autoencoder") and path.is_file() and not read_object(path).get("passed")

    def do(
        self, stage: str, function: Callable[[Path], object], report: Callable[[str], None], keep_later: bool = False
    ) -> None:
        """Run `function` on the stage's folder unless the stage is complete, and note what it cost.

        Text that it returns is reported; a watcher of [`pdiff_hf.progress`] is told instead.

        Later stages are then no longer complete, unless `keep_later`.

        All processes of `accelerate launch` call it, and `function` is called by all of them.
        """
        state = process_state()
        is_complete = self.is_complete(stage)
        # The main process changes nothing before all have looked.
        state.wait_for_everyone()
        watcher = current_watcher()
        if is_complete:
            if watcher is not None:
                return watcher.ended(stage, None)
            report(f"{stage}: complete, skipped ({self.path(stage)})")
            return
        # What later stages made of an earlier folder of this stage does not belong to its new one.
        from_here = [stage] if keep_later else list(STAGES)[list(STAGES).index(stage) :]
        if state.is_main_process:
            self._save({name: cost for name, cost in self.stages.items() if name not in from_here})
            for later in from_here[1:]:
                shutil.rmtree(self.path(later), ignore_errors=True)
        state.wait_for_everyone()
        if watcher is not None:
            watcher.began(stage)
        start = time.perf_counter()
        device_peak(reset=True)
        found = function(self.path(stage))
        state.wait_for_everyone()
        if state.is_main_process:
            self._save({**self.stages, stage: cost_since(start)})
        state.wait_for_everyone()
        # What a stage has cost is what it has cost the main process.
        self.stages = _read_stages(self.folder / STATE_FILE)
        if watcher is not None:
            return watcher.ended(stage, self.stages[stage]["seconds"])
        report(f"{stage}: {self.stages[stage]['seconds']:.1f} s → {self.path(stage)}")
        if isinstance(found, str):
            report(f"{stage}: {found}")

    def note(self, stage: str, cost: dict[str, float]) -> None:
        """Note that `stage` is complete and what it cost, when something else than [`do`] has made its folder."""
        self._save({**self.stages, stage: cost})

    def adopt(self, stage: str, other: Run) -> None:
        """Take over a stage that another run has completed, with what it cost there.

        A dataset's files are shared by hard links where the file system has them: nothing ever writes into them.
        """
        copy = link_or_copy if stage == "collect" else shutil.copy2
        ignored = shutil.ignore_patterns("checkpoint-*", ".*")
        with atomic_folder(self.path(stage), replace=True) as partial:
            shutil.copytree(other.path(stage), partial, copy_function=copy, ignore=ignored, dirs_exist_ok=True)
        self.note(stage, other.stages[stage])

    def _save(self, stages: dict[str, dict[str, float]]) -> None:
        self.stages = {stage: stages[stage] for stage in STAGES if stage in stages}
        write_json(self.folder / STATE_FILE, {"schema": 1, "stages": self.stages})


def read_metrics(generated_dir: Path) -> Metrics | None:
    """What a run found out about the networks it generated; other folders of networks were not evaluated."""
    from ..results.metrics import METRICS_FILE, Metrics

    report = generated_dir.parent / STAGES["evaluate"] / METRICS_FILE
    is_stage = generated_dir.resolve().name == STAGES["generate"]
    return Metrics.read(report) if is_stage and report.is_file() else None


def check_report_folder(folder: Path) -> None:
    """Raise `ValueError` unless a report may be written to `folder`: it is new, empty, or an earlier one."""
    from ..results.metrics import METRICS_FILE, TRAJECTORY_FILE

    is_report = any((folder / name).is_file() for name in (METRICS_FILE, TRAJECTORY_FILE))
    if folder.exists() and not is_report and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"expected a new folder or an earlier report, found that {folder} is neither.")


def cost_since(start: float) -> dict[str, float]:
    """Wall time since `start`, a value of `time.perf_counter()`, and peak memory of the process up to now.

    Of an accelerator that tells, that of its tensors, too, since [`~Run.do`] began a stage.
    """
    cost = {"seconds": round(time.perf_counter() - start, 3), "peak_rss_mb": round(peak_memory() / 2**20, 1)}
    peak = device_peak()
    return cost if peak is None else {**cost, PEAK_ON_DEVICE: round(peak / 2**20, 1)}


def open_run(recipe: PydanticModel, folder: str | Path, written: Sequence[str] | None = None) -> Run:
    """Open a new run folder, or one that the same recipe has begun. Nothing is written yet: see [`begin_run`].

    After the gate has refused the autoencoder, the sections from `autoencoder` on may be others than before. What will
    be `written` may not be in a new folder; by default it has to be empty.

    Raises:
        ValueError: the folder holds another run or other files.
    """
    folder = Path(folder)
    wanted = recipe.model_dump(mode="json")
    path = folder / RECIPE_FILE
    if os.path.lexists(path):
        run = Run(folder)
        found = _read_recipe(path, type(recipe))
        if run.is_refused():
            found = {**found, **{key: wanted[key] for key in AFTER_COLLECTION if key in wanted}}
        if found != wanted:
            difference = first_difference(found, wanted)
            raise ValueError(f"{folder} holds another run: {difference}. Choose another {argument('folder')}.")
        return run
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder for the run, {folder} is a file.")
    for entry in folder.iterdir() if folder.exists() else ():
        if entry.name != LOCK_FILE and (written is None or entry.name in written):
            raise ValueError(f"{folder} holds {entry.name} but is no run of pdiff; choose a new or empty folder.")
    return Run(folder)


def begin_run(recipe: PydanticModel, run: Run) -> None:
    """Write the recipe to the run folder, see [`write_recipe`]; of processes that share the run, the main one does."""
    # The main process changes nothing before all have opened the run.
    process_state().wait_for_everyone()
    if process_state().is_main_process:
        write_recipe(recipe, run)


def write_recipe(recipe: PydanticModel, run: Run) -> None:
    """Write the recipe to the run folder. A refused autoencoder of another recipe makes room for its successor."""
    wanted = recipe.model_dump(mode="json")
    path = run.folder / RECIPE_FILE
    if path.is_file():
        if _read_recipe(path, type(recipe)) == wanted:
            return
        shutil.rmtree(run.path("autoencoder"))
    with atomic_write(path) as temporary:
        temporary.write_text(yaml.safe_dump(wanted, sort_keys=False), encoding="utf-8")


def _read_recipe(path: Path, model: type[PydanticModel]) -> dict:
    """The recipe of a run folder; keys that came later mean what was before, those of other kinds are left out."""
    values = read_mapping(path)
    for name, before in RECORDED_WITHOUT.items():
        if isinstance(section := values.get(name), dict):
            values[name] = {**before, **section}
    try:
        return model.model_validate(without_foreign_keys(SECTIONS, values)).model_dump(mode="json")
    except ValidationError:
        return values


def first_difference(found: object, wanted: object, path: str = "") -> str:
    """The first key whose value differs, with both values; empty where nothing does."""
    if found == wanted:
        return ""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *found]:
            if found.get(key) != wanted.get(key):
                return first_difference(found.get(key), wanted.get(key), f"{path}.{key}".lstrip("."))
    return f"its {path or 'recipe'} is {found!r}, expected {wanted!r}"
