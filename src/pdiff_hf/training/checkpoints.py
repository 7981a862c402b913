"""Checkpoints of a training stage: complete or absent, checked when they are read, shared by all processes."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from safetensors import SafetensorError

from ..files import read_json, sha256_file, write_json
from ..os_errors import as_os_error
from ..wording import argument

STATE_FILE = "trainer_state.json"
# What libraries raise when a disk is full; torch and safetensors have errors of their own for it.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
READ_ERRORS = (OSError, RuntimeError, ValueError, KeyError, SafetensorError)


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """The complete `checkpoint-N` folders in `output_dir`, by ascending N."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The complete `checkpoint-N` with the largest N in `output_dir`."""
    return next(reversed(complete_checkpoints(output_dir)), None)


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether weights are sharded over the processes, by FSDP."""
    return accelerator.distributed_type == DistributedType.FSDP


@contextmanager
def writing(accelerator: Accelerator, what: str | Path, output_dir: Path) -> Iterator[None]:
    """All processes enter; they write, or wait for the one that does, and go on together or stop together.

    The error names `what` was to be written and the last checkpoint in `output_dir`.

    Raises:
        ValueError: one of them could not write; the error of this process, if it has one, is quoted.
    """
    problem = None
    try:
        yield
    except WRITE_ERRORS as error:
        problem = as_os_error(error, output_dir) or error
    failed = torch.tensor(float(problem is not None), device=accelerator.device)
    if accelerator.reduce(failed, "sum") > 0:
        reason = str(problem).splitlines()[0] if problem is not None else "another process failed"
        if isinstance(problem, OSError) and problem.strerror:
            reason = f"{problem.strerror} ({problem.filename})"
        kept = latest_checkpoint(output_dir)
        raise ValueError(
            f"{what} could not be written: {reason}. What was complete before is still there (last checkpoint: "
            f"{'none' if kept is None else kept.name}); make room and start the same command again."
        ) from problem


def save_checkpoint(accelerator: Accelerator, output_dir: Path, state: dict[str, Any], limit: int) -> Path:
    """Write `checkpoint-N`, which appears under its name when it is complete, and keep the newest `limit`.

    All processes have to call, and see `output_dir`. `state`, JSON-able, is what the training loop needs beside
    Accelerate's; its `step` is N.

    Raises:
        ValueError: it could not be written; older ones are untouched.
    """
    final = output_dir / f"checkpoint-{state['step']}"
    partial = output_dir / f".partial-{final.name}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        with writing(accelerator, final, output_dir):
            accelerator.save_state(str(partial))
        with writing(accelerator, final, output_dir):
            if accelerator.is_main_process:
                files = sorted(path for path in partial.rglob("*") if path.is_file())
                digests = {path.relative_to(partial).as_posix(): sha256_file(path) for path in files}
                write_json(partial / STATE_FILE, {**state, "sharded": is_sharded(accelerator), "files": digests})
                shutil.rmtree(final, ignore_errors=True)
                partial.rename(final)
                for old in complete_checkpoints(output_dir)[:-limit]:
                    shutil.rmtree(old)
    except ValueError:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def load_checkpoint(
    accelerator: Accelerator, output_dir: Path, wanted: str | None, sources: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Load a checkpoint into what `accelerator` has prepared and registered, and return the loop's state.

    The files are compared with the hashes noted when they were written. Of `"latest"`, a damaged checkpoint is passed
    over in favour of the one before, with a line on standard error.

    Args:
        accelerator ([`accelerate.Accelerator`]): All of its processes have to call; their number may be another than
            when the checkpoint was written.
        output_dir (`Path`): Folder of the stage.
        wanted (`str`, *optional*): A checkpoint folder, or `"latest"`; `None`, as where there is none: the result is
            `None`.
        sources (`Mapping`, *optional*): What the checkpoint has to be made of, if it says so.

    Raises:
        ValueError: the checkpoint named does not exist or is damaged, or was made by another configuration or of
            other data.
    """
    found: list[str | None] = [None, None]
    if accelerator.is_main_process and wanted is not None:
        found = [*_find(output_dir, wanted)]
    checkpoint, problem = broadcast_object_list(found) if accelerator.num_processes > 1 else found
    if problem is not None:
        raise ValueError(problem)
    if checkpoint is None:
        return None
    state = read_json(Path(checkpoint) / STATE_FILE)
    if state["sharded"] != is_sharded(accelerator):
        kinds = {True: "with FSDP", False: "without FSDP"}
        raise ValueError(
            f"{checkpoint} was written {kinds[state['sharded']]}, found a launch {kinds[not state['sharded']]}; use "
            f"the accelerate config of the first launch, or another {argument('output_dir')}."
        )
    known = state.get("sources") or {}
    if other := [name for name, value in (sources or {}).items() if known.get(name, value) != value]:
        raise ValueError(
            f"{checkpoint} was trained with other data: {other[0]} {known[other[0]]!s:.12} is now "
            f"{sources[other[0]]!s:.12}; put them back, delete the checkpoints, or choose another "
            f"{argument('output_dir')}."
        )
    try:
        accelerator.load_state(checkpoint)
    except READ_ERRORS as error:
        raise ValueError(
            f"{checkpoint} does not fit this configuration: {str(error).splitlines()[0]} Resume with the options it "
            f"was made with, or choose another {argument('output_dir')}."
        ) from error
    # Accelerate counts accumulation steps, of which another configuration may have another number.
    accelerator.step = 0
    return state


def _find(output_dir: Path, wanted: str) -> tuple[str | None, str | None]:
    """The checkpoint to load, if there is one, or what is wrong with the one that was named."""
    if wanted != "latest":
        if not Path(wanted).is_dir():
            return None, f"resume_from_checkpoint: expected a checkpoint folder, {wanted} does not exist."
        if problem := _damage(Path(wanted)):
            return None, f"resume_from_checkpoint: {wanted} is damaged: {problem}; choose an older one."
        return wanted, None
    for checkpoint in reversed(complete_checkpoints(output_dir)):
        problem = _damage(checkpoint)
        if problem is None:
            return str(checkpoint), None
        print(f"{checkpoint} is damaged ({problem}) and passed over.", file=sys.stderr)
    return None, None


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint."""
    try:
        state = read_json(checkpoint / STATE_FILE)
    except ValueError as error:
        return str(error)
    if not isinstance(state, dict) or not {"step", "files", "sharded"} <= state.keys():
        return f"{STATE_FILE} is not complete"
    for name, digest in state["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256_file(path) != digest:
            return f"{name} is not what was written"
    return None
