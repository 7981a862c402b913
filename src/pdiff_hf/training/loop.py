"""The optimisation loop that both stages share: Accelerate, checkpoints, resume, loss history."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, set_seed
from torch import nn

from ..machine import ThreadChoice, precision_of, process_state
from ..models.config import OptimizationConfig
from ..progress import ProgressBar
from ..wording import argument
from .batches import GlobalBatch, upload
from .checkpoints import is_sharded, latest_checkpoint, load_checkpoint, save_checkpoint
from .interrupts import StopRequest, TrainingInterrupted
from .logs import LossHistory, NonFiniteLossError, check_tracker, tracking
from .optimization import Optimization
from .step_choice import StepChoice

LOG_EVERY = 10


class Trained(NamedTuple):
    """What [`run_steps`] gives: the whole model without wrappers, the same on all processes; the history of the loss.

    The history is `[{"step", "loss", "lr"}]`; `threads` says how many of them computed it, such as "1 of 2 threads".
    """

    model: nn.Module
    history: list[dict[str, float]]
    threads: str


def make_accelerator(config: OptimizationConfig | None, output_dir: str | Path) -> Accelerator:
    """Make the `Accelerator` of a stage from its config, `None` without steps; trackers write to `output_dir/logs`.

    Raises:
        ValueError: the tracker's package is missing, or FSDP is not configured as in `accelerate_configs/fsdp.yaml`.
    """
    options = {"mixed_precision": "no"}
    if config is not None:
        check_tracker(config.report_to)
        options = {
            "mixed_precision": config.mixed_precision,
            "gradient_accumulation_steps": config.gradient_accumulation_steps,
            "log_with": None if config.report_to == "none" else config.report_to,
        }
    process_state()
    # The stage before may have had another precision, which Accelerate keeps for the whole program.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        **options,
        project_config=ProjectConfiguration(project_dir=str(output_dir), logging_dir=str(Path(output_dir) / "logs")),
        # Buffers are statistics of all parameters, as large as the dataset's rows, and the same on every process.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    if is_sharded(accelerator):
        plugin = accelerator.state.fsdp_plugin
        # By size, Accelerate would wrap lists of modules, which are never called.
        if plugin.fsdp_version != 2 or plugin.auto_wrap_policy is not None:
            raise ValueError(
                "expected fsdp_version: 2 and fsdp_auto_wrap_policy: NO_WRAP in the accelerate config, found version "
                f"{plugin.fsdp_version} and policy {plugin.auto_wrap_policy}; take "
                "training/accelerate_configs/fsdp.yaml."
            )
        # Autocast rounds products, as without FSDP; rounded inputs would lose what normalisation has to tell apart.
        plugin.mixed_precision_policy = None
    return accelerator


def run_steps(
    accelerator: Accelerator,
    model: nn.Module,
    num_rows: int,
    draw: Callable[[GlobalBatch], Sequence[torch.Tensor]],
    loss_fn: Callable[..., torch.Tensor],
    config: OptimizationConfig,
    output_dir: Path,
    description: str,
    resume_from_checkpoint: str | None = None,
    sources: Mapping[str, Any] | None = None,
    choice: StepChoice | None = None,
) -> Trained:
    """Train `model` for `config.steps` optimiser steps.

    SIGTERM and SIGINT write a checkpoint after the step that is being done, and end the program.

    Args:
        accelerator ([`accelerate.Accelerator`]): Of this stage.
        model (`nn.Module`): Trained in place, except with FSDP, which trains a copy. Averaged at the end by `use_ema`.
        num_rows (`int`): Rows of the training data, from which `GlobalBatch.indices` are dealt.
        draw (`Callable`): Maps a [`GlobalBatch`] to all that a step is given: tensors of the same shapes.
        loss_fn (`Callable`): Maps the prepared model and these tensors, on the accelerator's device, to the mean loss
            of this process's rows. It reads no values back, so that a CUDA graph can be made of it.
        config ([`OptimizationConfig`]): Hyper-parameters.
        output_dir (`Path`): Where `checkpoint-N/` are written.
        description (`str`): Name on the progress bar and of the tracker.
        resume_from_checkpoint (`str`, *optional*): Folder of a checkpoint, or `"latest"` for the last complete one in
            `output_dir`, if there is one.
        sources (`Mapping`, *optional*): JSON-able, what the training data are; a checkpoint of others is refused.
        choice ([`StepChoice`], *optional*): Chooses the step whose weights are returned, averaged if there is an
            average; the last one by default.

    Returns:
        [`Trained`].

    Raises:
        NonFiniteLossError: the loss or the gradient became NaN or infinite; checkpoints are from before.
        TrainingInterrupted: a signal has stopped the training.
        ValueError: the checkpoint named cannot be used, or one could not be written.
    """
    set_seed(config.seed)
    trained = Optimization(accelerator, model, config, loss_fn)
    if choice is not None:
        choice.of(trained.parameters)
        accelerator.register_for_checkpointing(choice)

    # 1. Resume
    state = load_checkpoint(accelerator, output_dir, resume_from_checkpoint, sources) or {"step": 0, "rows": 0}
    history = LossHistory(accelerator, state.get("history"), state.get("pending"))
    first_step, rows = state["step"], state["rows"]
    threads = ThreadChoice(accelerator.device, state.get("threads"))

    def save(step: int, pending: list[float]) -> Path:
        state = {"step": step, "rows": rows, "history": history.entries, "pending": pending, "sources": sources}
        state["threads"] = threads.taken
        return save_checkpoint(accelerator, output_dir, state, config.checkpoints_total_limit)

    def batches(step: int) -> Iterator[Sequence[torch.Tensor]]:
        for micro_step in range(config.gradient_accumulation_steps):
            batch = GlobalBatch(
                num_rows,
                config.train_batch_size,
                step,
                config.seed,
                rank=accelerator.process_index,
                world_size=accelerator.num_processes,
                device=accelerator.device,
                micro_step=micro_step,
                micro_steps=config.gradient_accumulation_steps,
                start=rows,
            )
            yield upload(draw(batch), accelerator.device)

    # 2. Steps
    if choice is not None and 0 in choice.steps and 0 not in choice.curve:
        trained.consider(choice, 0)
    trained.model.train()
    shown = {"desc": description, "total": config.steps, "initial": first_step, "leave": False}
    with (
        precision_of("training"),
        tracking(accelerator, config, description),
        StopRequest(accelerator) as stop,
        ProgressBar(range(first_step, config.steps), disable=not accelerator.is_main_process, **shown) as bar,
    ):
        for step in bar:
            with threads.step():
                losses, norm = trained.step(batches(step))
            history.add(losses, norm)
            rows += config.train_batch_size * accelerator.num_processes * config.gradient_accumulation_steps

            done = step + 1
            if choice is not None and done in choice.steps:
                trained.consider(choice, done)

            # 3. Log and save, at the same steps whether resumed or not; what is not finite is found before it is saved
            is_due = done % config.checkpointing_steps == 0 and done < config.steps
            try:
                if is_due or done % LOG_EVERY == 0 or done == config.steps:
                    entry = history.log(done, trained.lr_scheduler.get_last_lr()[0])
                    accelerator.log({"loss": entry["loss"], "lr": entry["lr"]}, step=done)
                    bar.set_postfix(loss=f"{entry['loss']:.4g}", refresh=False)
                if is_due:
                    save(done, [])
                number = stop.agreed() if done < config.steps else None
                if number is not None:
                    checkpoint = save(done, history.pending(done))
            except NonFiniteLossError as error:
                rate = argument("learning_rate", key=f"{description}.learning_rate")
                precision = argument("mixed_precision", "'no'", "no", f"{description}.mixed_precision")
                raise NonFiniteLossError(
                    f"{description}: {error}; the last good checkpoint is {latest_checkpoint(output_dir) or 'none'}. "
                    f"Lower the learning rate ({rate}) or give {precision}."
                ) from error
            if number is not None:
                if accelerator.is_main_process:
                    print(
                        f"{description}: stopped by {signal.Signals(number).name} after {done} of {config.steps} "
                        f"steps → {checkpoint}. To go on, start the same command again, training scripts with "
                        "--resume_from_checkpoint latest.",
                        file=sys.stderr,
                    )
                raise TrainingInterrupted(number)
    return Trained(trained.whole_model(choice), history.entries, str(threads))
