"""Carrying out an ablation: every run in a process of its own, shared among the processes of `accelerate launch`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState

from ...files import atomic_write, partial_folder, read_json, write_json
from ...locks import locked
from ...machine import one_writer, process_state
from ..folder import RECIPE_FILE, Run
from .plan import PLAN_FILE, Job, Plan, base_model_key, definition, make_jobs, stage_keys
from .share import begin_job, place_base_model

PROBLEM_FILE = "problem.json"
LOG_FILE = "log.txt"
# Of `ru_maxrss`: kilobytes on Linux, bytes on macOS.
RSS_UNITS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10
# What a launcher tells its processes. A run that saw it would wait for the other processes in its stages.
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
LAUNCHER_PREFIXES = ("LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_", "FSDP_", "ACCELERATE_", "OMPI_", "PMI_", "PMIX_")
# Not about the number of processes.
KEPT_VARIABLES = ("ACCELERATE_USE_CPU",)

# Runs a module with arguments, its output in a file; returns its exit code and its peak memory in MB.
Launch = Callable[[Sequence[str], Path], tuple[int, float]]


@one_writer("folder")
def execute(
    plan: Plan, folder: str | Path, report: Callable[[str], None] = lambda line: None, launch: Launch | None = None
) -> None:
    """Carry out all runs of an ablation that are not complete.

    Started by `accelerate launch`, every process carries out whole runs alone, on a device of its own, and the folder
    is one that all processes see. A run that fails leaves `problem.json` in its folder and stops nothing.

    Args:
        plan ([`Plan`]): With all axes of the folder, see [`open_ablation`].
        folder (`str` or `Path`): New, or that of the same ablation.
        report (`Callable`, *optional*): Receives a line of text after every run.
        launch (`Callable`, *optional*): Runs a command; by default [`run_python`].
    """
    folder, state, jobs = Path(folder), process_state(), make_jobs(plan)
    launch, own = launch or run_python(state), slice(state.process_index, None, state.num_processes)
    if state.is_main_process:
        _write_yaml(definition(plan), folder / PLAN_FILE)
    state.wait_for_everyone()

    # 1. Base models that several collections start from
    for job in _base_trainings(jobs, folder)[own]:
        target = _base_folder(job, folder)
        recipe, log = target.with_suffix(".yaml"), target.with_suffix(".log")
        _write_yaml(job.recipe.model_dump(mode="json"), recipe)
        code, _ = launch(["pdiff_hf.runs.ablation.share", str(recipe), str(target)], log)
        said = "trained" if code == 0 else f"{problem_in(log, code)}; every run trains its own"
        report(f"base model: {said} → {target}")
    state.wait_for_everyone()

    # 2. Runs, those first that others take something from
    done = 0
    for wave in range(1 + max(job.wave for job in jobs)):
        current = [job for job in jobs if job.wave == wave]
        for job in current[own]:
            begin = time.perf_counter()
            is_known = Run(folder / job.folder).is_complete("evaluate")
            problem = None if is_known else _carry_out(job, folder, launch)
            number = done + current.index(job) + 1
            seconds = "skipped, complete" if is_known else problem or f"{time.perf_counter() - begin:.0f} s"
            report(f"[{number}/{len(jobs)}] {job.folder.relative_to('points')}: {seconds}")
        done += len(current)
        state.wait_for_everyone()


def problem_of(job: Job, folder: str | Path) -> str | None:
    """Why the last try of a run failed, `None` when it did not."""
    path = Path(folder) / job.folder / PROBLEM_FILE
    return read_json(path)["problem"] if path.is_file() else None


def run_python(state: PartialState) -> Launch:
    """How an ablation runs a command: in a new process, whose peak memory is its own, without launcher's variables."""
    # Its output is read here, whatever the terminal's encoding.
    environment = {**launcher_free(os.environ), "PYTHONIOENCODING": "utf-8"}
    if state.device.type == "cuda":
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        index = state.device.index or 0
        environment["CUDA_VISIBLE_DEVICES"] = visible[index] if visible else str(index)

    def launch(arguments: Sequence[str], log: Path) -> tuple[int, float]:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as file:
            process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=file, stderr=file, env=environment)
            # SIGTERM ends an ablation like Ctrl-C does, and the run that it waits for as well.
            handler = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
            try:
                # The memory of this child, not the largest of all so far.
                _, status, usage = os.wait4(process.pid, 0)
            except BaseException:
                process.terminate()
                os.waitpid(process.pid, 0)
                raise
            finally:
                signal.signal(signal.SIGTERM, handler)
        return os.waitstatus_to_exitcode(status), usage.ru_maxrss / RSS_UNITS_PER_MB

    return launch


def launcher_free(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what makes a program one of several processes."""
    return {
        name: value
        for name, value in environment.items()
        if name in KEPT_VARIABLES or not (name in LAUNCHER_VARIABLES or name.startswith(LAUNCHER_PREFIXES))
    }


def _base_trainings(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """A job for every base model that is not trained yet and that several collections start from."""
    collections: dict[str, dict[str, Job]] = {}
    for job in jobs:
        if not Run(folder / job.folder).is_complete("collect"):
            keys = stage_keys(job.recipe)
            collections.setdefault(base_model_key(job.recipe), {}).setdefault(keys["collection"], job)
    first = [next(iter(own.values())) for own in collections.values() if len(own) > 1]
    return [job for job in first if not _base_folder(job, folder).exists()]


def _base_folder(job: Job, folder: Path) -> Path:
    return folder / "base_models" / base_model_key(job.recipe)[:12]


def _write_yaml(values: Mapping[str, Any], path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _carry_out(job: Job, folder: Path, launch: Launch) -> str | None:
    """Run a job and return its problem, if there was one."""
    own = folder / job.folder
    with locked(own):
        for name in (PROBLEM_FILE, LOG_FILE):
            (own / name).unlink(missing_ok=True)
        run = begin_job(job, folder)
    recipe, log = str(own / RECIPE_FILE), own / LOG_FILE
    code = 0
    if not run.is_complete("collect"):
        # In a process of its own: what training the base model needed is not the memory of the generator.
        start, dataset = time.perf_counter(), run.path("collect")
        base = _base_folder(job, folder)
        if base.exists():
            place_base_model(base, partial_folder(dataset))
        code, peak = launch(["pdiff_hf", "collect", recipe, "--out", str(dataset)], log)
        if code == 0:
            seconds = time.perf_counter() - start
            run.note("collect", {"seconds": round(seconds, 3), "peak_rss_mb": round(peak, 1)})
    if code == 0:
        code, _ = launch(["pdiff_hf", "run", recipe, "--out", str(own)], log)
    if code == 0:
        return None
    problem = problem_in(log, code)
    write_json(own / PROBLEM_FILE, {"problem": problem, "exit_code": code})
    return problem


def problem_in(log: Path, code: int) -> str:
    """The line in which a command has said why it failed."""
    if code < 0:
        return f"ended by signal {-code}" + (", probably for want of memory" if code == -signal.SIGKILL else "")
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    return [f"exit code {code}", *lines, *said][-1]
