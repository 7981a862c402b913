"""The optimisation loop that both stages share: Accelerate, EMA, schedule, checkpoints, resume, loss history."""

from __future__ import annotations

import copy
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, broadcast, set_seed
from diffusers.optimization import get_scheduler
from torch import nn
from tqdm.auto import tqdm

from ..machine import ThreadChoice, process_state
from ..models.config import OptimizationConfig
from ..wording import argument
from .batches import GlobalBatch
from .checkpoints import is_sharded, latest_checkpoint, load_checkpoint, save_checkpoint
from .ema import ShardedEMA, whole_tensor
from .interrupts import StopRequest, TrainingInterrupted
from .logs import LossHistory, NonFiniteLossError, check_tracker, tracking
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
    loss_fn: Callable[[nn.Module, GlobalBatch], torch.Tensor],
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
        loss_fn (`Callable`): Maps the prepared model and a [`GlobalBatch`] to the mean loss of this process's rows.
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
    trained = _Training(accelerator, model, config)
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

    # 2. Steps
    if choice is not None and 0 in choice.steps and 0 not in choice.curve:
        trained.consider(choice, 0)
    trained.model.train()
    shown = {"desc": description, "total": config.steps, "initial": first_step, "leave": False}
    with (
        tracking(accelerator, config, description),
        StopRequest(accelerator) as stop,
        tqdm(range(first_step, config.steps), disable=not accelerator.is_main_process, **shown) as bar,
    ):
        for step in bar:
            with threads.step():
                losses, norm, taken = trained.step(num_rows, step, rows, loss_fn)
            history.add(losses, norm)
            rows += taken

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


class _Training:
    """A model with what trains it, prepared for all processes: optimiser, schedule and moving average."""

    def __init__(self, accelerator: Accelerator, model: nn.Module, config: OptimizationConfig):
        self.accelerator, self.config = accelerator, config
        if accelerator.num_processes > 1 and accelerator.device.type != "cpu":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # FSDP replaces the parameters; the trained ones are put together in here.
        self.whole = copy.deepcopy(model).to(accelerator.device) if is_sharded(accelerator) else None
        options = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        optimizer = torch.optim.AdamW(model.parameters(), **options, fused=True)
        # Not prepared by Accelerate, which would step it once per process.
        self.lr_scheduler = get_scheduler(
            config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=config.steps
        )
        with warnings.catch_warnings():
            # torch has another name for the option that Accelerate passes on.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.parameters = list(self.model.parameters())
        self.ema = None
        if config.use_ema:
            average = {"decay": config.ema_decay, "use_ema_warmup": True, "power": 0.75, "foreach": True}
            self.ema = ShardedEMA(self.parameters, **average)
            accelerator.register_for_checkpointing(self.ema)
        accelerator.register_for_checkpointing(self.lr_scheduler)

    def step(
        self, num_rows: int, step: int, start: int, loss_fn: Callable[[nn.Module, GlobalBatch], torch.Tensor]
    ) -> tuple[list[torch.Tensor], torch.Tensor, int]:
        """One optimiser step: losses of its batches, norm of the gradient, and rows of all processes that it took."""
        accelerator, config, losses = self.accelerator, self.config, []
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
                start=start,
            )
            with accelerator.accumulate(self.model):
                with accelerator.autocast():
                    loss = loss_fn(self.model, batch)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = whole_tensor(accelerator.clip_grad_norm_(self.parameters, config.max_grad_norm))
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
        self.lr_scheduler.step()
        if self.ema is not None:
            self.ema.step(self.parameters)
        # With fp16 an infinite gradient only lowers the scale of the loss.
        return losses, norm if accelerator.scaler is None else torch.zeros_like(norm), batch.global_size

    @torch.no_grad()
    def consider(self, choice: StepChoice, step: int) -> None:
        """Let a choice consider the model, averaged if there is an average."""
        present = [parameter.detach().clone() for parameter in self.parameters] if self.ema is not None else ()
        if self.ema is not None:
            self.ema.copy_to(self.parameters)
        choice.consider(step, self.model.eval())
        self.model.train()
        if self.whole is not None:
            # What a forward pass has gathered stays for a backward pass, and the next step would take it for weights.
            self.model.reshard()
        for parameter, value in zip(self.parameters, present, strict=False):
            parameter.copy_(value)

    def whole_model(self, choice: StepChoice | None = None) -> nn.Module:
        """The model without wrappers, in eval mode, the same on all processes: as chosen, or averaged, if it is."""
        accelerator, model = self.accelerator, self.whole
        if choice is not None:
            choice.restore()
        elif self.ema is not None:
            self.ema.copy_to(self.parameters)
        if model is None:
            model = accelerator.unwrap_model(self.model, keep_torch_compile=False)
            if accelerator.num_processes > 1:
                # Without SyncBatchNorm, running statistics are those of each process's rows.
                broadcast(dict(model.named_buffers()))
        else:
            weights = accelerator.get_state_dict(self.model)
            if accelerator.is_main_process:
                model.load_state_dict(weights)
            broadcast(dict(model.state_dict()))
        return model.eval()
