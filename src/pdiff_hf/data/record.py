"""Recorder of the checkpoints of a running training."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..adapters.gauge import lora_pairs
from ..base_model import BaseModel
from ..conditions import ConditionSpec
from ..files import errors_of
from ..host_copy import HostCopy
from ..layout import ParameterLayout
from ..locks import FolderLock, locked
from ..os_errors import writing
from ..wrapped import gathered
from .columns import CONDITION, CONDITION_TEXT
from .conditions import Embed, condition_columns
from .folder import write_layout
from .gauge import gauge_reference, recorded_form
from .rest import RestCheck
from .scalars import to_integer
from .shards import KNOWN_ROWS, RECORDING, recorded_runs, rows_table
from .writer import check_append, check_new_runs, drop_rows, finish_rows

# Of rows with more bytes, Arrow gives back what it has freed.
LARGE_ROW = 2**22

# What travels with a checkpoint from an accelerator, as float32: values of these types, and no more of the rest.
EXACT = (torch.float32, torch.float16, torch.bfloat16)
MAX_REST_VALUES = 2**26

# Open ones of this process by their folders, also those that nobody else knows any more.
_recording: dict[str, ParameterRecorder] = {}


class ParameterRecorder:
    """Writes checkpoints of a training run to a parameter dataset, row by row, in constant memory.

    Nothing is written before the first checkpoint. Rows go to a stream on disk and are readable from then on, also
    after a crash; [`~ParameterRecorder.close`] turns the stream into Parquet. Several runs may be recorded one after
    the other into the same folder; what a run that was cut off has left there is kept.

    From the second one on, a checkpoint on an accelerator is copied behind the training's work, which nobody waits
    for, and written when the next one is recorded, or at [`~ParameterRecorder.flush`].

    Args:
        layout ([`ParameterLayout`]):
            Tensors to record.
        output_dir (`str` or `Path`):
            Folder of the dataset.
        base_model ([`BaseModel`], *optional*):
            Copied into the folder, with its weights. What the layout leaves out of a recorded network has to be equal
            to these weights, or a row and the base model would rebuild a network that never was.
        run (`str`, *optional*, defaults to `"run-0"`):
            Name of the training run; one that the folder holds already is refused when recording begins, unless it is
            resumed.
        seed (`int`, *optional*, defaults to 0):
            Seed of the run.
        metadata (`Mapping`, *optional*):
            JSON-able, goes into `stats.json`.
        task (`Mapping`, *optional*):
            What networks are judged by from then on, as JSON: the keys of a recipe's `task` section, or a function of
            your own, `{"kind": "function", "function": "nets.py:evaluate"}`.
        resume_from (`int`, *optional*):
            Step of the checkpoint that the training goes on from, see [`~ParameterRecorder.resume`].
        conditions ([`ConditionSpec`], *optional*):
            What networks are trained for: every checkpoint then has a condition.
        embed (`Callable`, *optional*):
            The encoder of conditions that are sentences, `n` of them → `(n, size)`.

    Raises:
        ValueError: the folder holds another layout, another base model or other conditions.

    Example:
    ```py
    layout = ParameterLayout.from_model(model, "last_norms:2")
    base_model = BaseModel.timm("resnet18", num_classes=10).save_weights(model, "runs/base")
    layout.freeze_rest(model)
    with ParameterRecorder(layout, "runs/params", base_model) as recorder:
        for step, loss in enumerate(train(model)):
            recorder.record(model, step=step, loss=loss)
    ```
    """

    def __init__(
        self,
        layout: ParameterLayout,
        output_dir: str | Path,
        base_model: BaseModel | None = None,
        *,
        run: str = "run-0",
        seed: int = 0,
        metadata: Mapping[str, Any] | None = None,
        task: Mapping[str, Any] | None = None,
        resume_from: int | None = None,
        conditions: ConditionSpec | None = None,
        embed: Embed | None = None,
    ):
        self.conditions, self._embed = conditions, embed
        self.layout, self.output_dir, self.base_model = layout, Path(output_dir), base_model
        self.run, self.seed = run, seed
        self.metadata = metadata if task is None else {**(metadata or {}), "task": dict(task)}
        self.num_recorded = 0
        # Whose steps are numbers of rows, and say nothing of time.
        self.unordered_runs: set[str] = set()
        # The open recording, unbuffered: what has not been written is not to follow later.
        self._file: io.FileIO | None = None
        self._closed = False
        # A checkpoint on its way from an accelerator: its row, and names and shapes of what was copied with it.
        self._copy, self._pending = HostCopy(), None
        self._rest = None if base_model is None else RestCheck(layout, base_model)
        self._resume_from: int | None = None
        # Adapters, and to which one they are turned.
        self._has_factors, self._reference = bool(lora_pairs(layout)), None
        check_append(self.output_dir, layout, base_model, [], conditions)
        if resume_from is not None:
            self.resume(resume_from)

    def resume(self, step: int) -> None:
        """Go on with the run after its training was stopped, from a checkpoint of the training at `step`.

        When the next checkpoint is recorded, the rows of the run behind `step`, or from that checkpoint on, are
        removed from the folder; until then, they stay. A run that the folder does not hold begins. A recorder that is
        open or closed may be resumed, too; one that a stopped training has left open in this process is closed.
        """
        step = to_integer(step, "resume")
        self._finish()
        self._closed, self._resume_from = False, step

    def next_run(self, run: str | None = None) -> None:
        """Close the run and begin another one in the same folder.

        Args:
            run (`str`, *optional*): Its name; by default that of this run with the next number that is free.
        """
        self._finish()
        if run is None:
            stem, number = re.fullmatch(r"(.*?)(?:-(\d+))?", self.run, re.DOTALL).groups()
            known, number = {self.run, *recorded_runs(self.output_dir)}, int(number or 0)
            while (run := f"{stem}-{number}") in known:
                number += 1
        self.run, self._closed, self._resume_from = run, False, None

    def check_new(self) -> None:
        """Raise `ValueError` when the folder holds the run already, and it is not resumed."""
        if self._file is None and self._resume_from is None:
            check_new_runs(self.output_dir, [self.run])

    def record(
        self,
        state: nn.Module | Mapping[str, torch.Tensor] | torch.Tensor,
        *,
        step: int,
        epoch: float | None = None,
        loss: float | torch.Tensor | None = None,
        accuracy: float | torch.Tensor | None = None,
        condition: Any = None,
        **metrics: float | torch.Tensor | None,
    ) -> None:
        """Append one checkpoint.

        Args:
            state (`nn.Module`, `Mapping` or `torch.Tensor` of shape `(D,)`):
                The network, its state dict or a flat vector. Whether the rest of the network is that of the base model
                can be seen of a network, of a state dict as far as it goes, and of a vector not at all.
            step (`int`):
                Optimiser step of the run.
            epoch (`float`, *optional*):
                Epoch, fractions allowed.
            loss (`float`, *optional*):
                Column `train_loss`; like all numbers here, of any kind: also a tensor or an array of one element.
            accuracy (`float`, *optional*):
                Column `val_accuracy`, a fraction in [0, 1].
            condition (*optional*):
                What the network is trained for, as [`ConditionSpec.values`] of `conditions` takes it; of texts the
                sentence, or its embedding with the sentence as `condition_text`.
            **metrics (`float`):
                Further columns. The metrics of a run's first checkpoint are those of all.

        Raises:
            ValueError: a value is NaN, infinite or no number, the state does not fit the layout, what the layout
                leaves out is not the base model's, the metrics are others than those of the first checkpoint, the
                condition is none of its kind, the folder holds the run already, or another recorder is writing to it.
                What is wrong with the values of a checkpoint on an accelerator is said when it is written.
        """
        if self._closed:
            raise ValueError(f"run {self.run!r} is closed; record further checkpoints as another run.")
        if taken := metrics.keys() & {"parameters", "run", "seed"}:
            raise ValueError(f"step {step}: expected a metric with a name of its own, found {min(taken)!r}.")
        step = to_integer(step, "step")
        named = {"train_loss": loss, "val_accuracy": accuracy}
        row = {"run": self.run, "seed": self.seed, "step": step, "epoch": epoch}
        row |= {name: value for name, value in named.items() if value is not None}
        row |= self._condition(step, {} if condition is None else {CONDITION: condition}, metrics) | metrics
        rest: dict[str, torch.Tensor] = {}
        if isinstance(state, torch.Tensor):
            if state.shape != (self.layout.num_parameters,):
                expected = (self.layout.num_parameters,)
                raise ValueError(f"step {step}: expected a vector of shape {expected}, found {tuple(state.shape)}.")
            tensors = [state]
        else:
            tensors = self.layout.tensors_of(state)
            if self._rest is not None:
                with errors_of(f"step {step}"):
                    rest = self._check_rest(state)
        # The copy of the checkpoint before ends where that of this one begins.
        self.flush()
        scalars = [name for name, value in row.items() if _travels(value) and value.numel() == 1]
        is_on_its_way = self._copy.start([tensors, *([row[name]] for name in scalars), *([t] for t in rest.values())])
        self._pending = row, scalars, {name: (tensor.shape, tensor.dtype) for name, tensor in rest.items()}
        # The first one shows whether the folder can be written to.
        if self._file is None or not is_on_its_way:
            self.flush()

    def _condition(self, step: int, given: dict[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a checkpoint's condition."""
        given |= {CONDITION_TEXT: metrics[CONDITION_TEXT]} if CONDITION_TEXT in metrics else {}
        columns = {name: [value] for name, value in given.items()}
        found = condition_columns(self.conditions, columns, self._embed, "step", step)
        return {name: value for name, (value,) in found.items()}

    def _check_rest(self, state: nn.Module | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compare the rest of a network, but for what is returned: tensors that travel with the checkpoint."""
        due = self._rest.due(state)
        rest = {name: tensor for name, tensor in due.items() if _travels(tensor)}
        if sum(tensor.numel() for tensor in rest.values()) > MAX_REST_VALUES:
            rest = {}
        self._rest.compare({name: tensor for name, tensor in due.items() if name not in rest})
        return rest

    def flush(self) -> None:
        """Write the last checkpoint, if it is still on its way from an accelerator.

        Raises:
            ValueError: as [`~ParameterRecorder.record`], of that checkpoint.
        """
        if self._pending is None:
            return
        (row, scalars, rest), self._pending = self._pending, None
        vector, *others = self._copy.finish()
        row |= zip(scalars, others, strict=False)
        if rest:
            copies = zip(rest.items(), others[len(scalars) :], strict=True)
            with errors_of(f"step {row['step']}"):
                self._rest.compare({name: copy.view(shape).to(dtype) for (name, (shape, dtype)), copy in copies})
        columns = {name: [value] for name, value in row.items()}
        vectors = self._in_frame(vector[None]).numpy()
        table = rows_table(vectors, self.layout, columns, unit="step", first=row["step"])
        if self._file is None:
            self._open(table.schema, row["step"])
        if (found := table.schema.names) != (expected := self._schema.names):
            raise ValueError(f"step {row['step']}: expected the columns {expected}, found {found}.")
        for batch in table.to_batches():
            self._append(batch.serialize())
        if table.nbytes > LARGE_ROW:
            pa.default_memory_pool().release_unused()
        self.num_recorded += 1

    def _in_frame(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows as the dataset has them: of adapters, with factors in the frame of other runs, or of the first."""
        if not self._has_factors:
            return rows
        if self._reference is None:
            self._reference = gauge_reference(self.layout, self.base_model, self.output_dir, self.run)
        found = recorded_form(self.layout, rows, self._reference)
        if self._reference is None:
            self._reference = found[0].clone()
        return found

    def _open(self, schema: pa.Schema, step: int) -> None:
        # Before the folder is touched, and again when nobody else writes to it.
        self.check_new()
        other = _recording.get(place := os.path.realpath(self.output_dir))
        if self._resume_from is not None and other not in (None, self) and other.run == self.run:
            # Of the training that was stopped.
            other.abandon()
        lock, known = FolderLock(self.output_dir), {}
        try:
            check_append(
                self.output_dir,
                self.layout,
                self.base_model,
                [] if self._resume_from is not None else [self.run],
                self.conditions,
            )
            if (self.output_dir / RECORDING).exists():
                finish_rows(self.output_dir)
            if self._resume_from is not None:
                drop_rows(self.output_dir, self.layout, self.run, min(step, self._resume_from + 1))
                known = {self.run: recorded_runs(self.output_dir)[self.run]}
            if not (self.output_dir / "layout.json").exists():
                write_layout(self.output_dir, self.layout, self.base_model, self.conditions)
            stored = schema.with_metadata({**(schema.metadata or {}), KNOWN_ROWS: json.dumps(known).encode()})
            self._file = open(self.output_dir / RECORDING, "wb", buffering=0)
            self._append(stored.serialize())
        except BaseException:
            if self._file is not None:
                self._file.close()
                self._file = None
            lock.release()
            raise
        self._schema, self._held = schema, lock
        self._resume_from, _recording[place] = None, self

    def _append(self, message: pa.Buffer) -> None:
        """Write a message of the stream; what fails or is interrupted is taken back, so that others may follow."""
        begin, rest = self._file.tell(), memoryview(message)
        try:
            with writing(self.output_dir / RECORDING):
                while rest:
                    rest = rest[self._file.write(rest) :]
        except BaseException:
            self._file.seek(begin)
            self._file.truncate()
            raise

    def abandon(self) -> None:
        """Close without a last look at the network, nor at a checkpoint that cannot be written any more."""
        with suppress(ValueError, RuntimeError):
            self.flush()
        self._finish()
        self._closed = True

    def close(self) -> None:
        """Turn what was recorded into Parquet and write `stats.json` and `README.md`; a second call does nothing.

        Raises:
            ValueError: what the layout leaves out is no longer the base model's; the rows are in the folder.
        """
        if self._finish():
            self._closed = True
            if self._rest is not None:
                try:
                    self._rest.finish()
                except ValueError as error:
                    raise ValueError(f"run {self.run!r} in {self.output_dir} is not to be used: {error}") from error
        self._closed = True

    def _finish(self) -> bool:
        """Turn an open stream into Parquet; `False` when there is none."""
        if self._file is None:
            return False
        try:
            self.flush()
        finally:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            _recording.pop(os.path.realpath(self.output_dir), None)
            try:
                finish_rows(self.output_dir, self.metadata, self.unordered_runs)
            finally:
                self._held.release()
        return True

    def __enter__(self) -> ParameterRecorder:
        self.check_new()
        return self

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        if exc_type is not None:
            # The error that ended the recording is the one to be seen.
            self.abandon()
        self.close()


def _travels(value: object) -> bool:
    """Whether something is a tensor on an accelerator whose values float32 holds."""
    return isinstance(value, torch.Tensor) and value.device.type not in ("cpu", "meta") and value.dtype in EXACT


def finish_recording(path: str | Path) -> None:
    """Turn a recording that was cut off, e.g. by a crash, into Parquet; its complete rows are kept.

    Raises:
        ValueError: there is no such recording, or a recorder is writing to it.
    """
    if not (Path(path) / RECORDING).exists():
        raise ValueError(f"expected a recording at {Path(path) / RECORDING}, found none.")
    with locked(path):
        finish_rows(Path(path))


class ParameterRecorderCallback(TrainerCallback):
    """Records checkpoints of a `transformers.Trainer` run and closes the recorder when training ends.

    A training that goes on from a checkpoint (`train(resume_from_checkpoint=…)`) goes on with the recorded run: rows
    behind the checkpoint's step are replaced. Trained again from the start, the same trainer records another run,
    `run-1` after `run-0`. Of networks that processes share in shards, as with FSDP, the whole is gathered.

    Args:
        recorder ([`ParameterRecorder`]): Where to; of several processes, the main one records.
        every (`int`, *optional*, defaults to 1): Optimiser steps between checkpoints.
        metrics (`Callable`, *optional*): Gives further columns of a checkpoint, numbers by name, by the network.
        condition (*optional*): What the network is trained for, where the recorder has `conditions`.

    Example:
    ```py
    layout = ParameterLayout.from_model(model, "head")
    base_model = BaseModel.transformers(model.config, type(model).__name__).save_weights(model, "runs/base")
    layout.freeze_rest(model)
    recorder = ParameterRecorder(layout, "runs/params", base_model)
    Trainer(model, args, train_dataset=dataset, callbacks=[ParameterRecorderCallback(recorder)]).train()
    ```
    """

    def __init__(
        self,
        recorder: ParameterRecorder,
        every: int = 1,
        metrics: Callable[[nn.Module], Mapping[str, float]] | None = None,
        condition: Any = None,
    ):
        if every < 1:
            raise ValueError(f"expected every >= 1, found {every}.")
        self.recorder, self.every, self.metrics, self.condition = recorder, every, metrics, condition

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Go on with the run of a training that is resumed, else begin one; `ValueError` when the folder holds it."""
        if not state.is_world_process_zero:
            return
        if state.global_step > 0:
            self.recorder.resume(state.global_step)
        elif self.recorder.num_recorded:
            self.recorder.next_run()
        else:
            self.recorder.check_new()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs
    ) -> None:
        """Record the model every `every` steps."""
        if state.global_step % self.every == 0:
            # Of all processes, where each has a part.
            whole = gathered(model)
            if state.is_world_process_zero:
                found = {} if self.metrics is None else self.metrics(model)
                self.recorder.record(
                    whole, step=state.global_step, epoch=state.epoch, condition=self.condition, **found
                )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Write what was recorded, so that a training that goes on from this checkpoint finds it in the folder."""
        self.recorder.flush()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Close the recorder."""
        self.recorder.close()
