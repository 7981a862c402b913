"""The optimisation loop that both stages share: Accelerate, EMA, schedule, checkpoints, resume, loss history."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm.auto import tqdm

from ..files import atomic_write
from .batches import GlobalBatch
from .config import OptimizationConfig

LOG_EVERY = 10
LOG_FILE = "train_log.jsonl"


def make_accelerator(config: OptimizationConfig, output_dir: str | Path) -> Accelerator:
    """Make the `Accelerator` of a stage from its config; trackers write to `output_dir/logs`."""
    return Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=None if config.report_to == "none" else config.report_to,
        project_config=ProjectConfiguration(project_dir=str(output_dir), logging_dir=str(Path(output_dir) / "logs")),
    )


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """The complete `checkpoint-N` folders in `output_dir`, by ascending N."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The complete `checkpoint-N` with the largest N in `output_dir`."""
    return next(reversed(complete_checkpoints(output_dir)), None)


def run_steps(
    accelerator: Accelerator,
    model: nn.Module,
    num_rows: int,
    loss_fn: Callable[[nn.Module, GlobalBatch], torch.Tensor],
    config: OptimizationConfig,
    output_dir: Path,
    description: str,
    resume_from_checkpoint: str | None = None,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train `model` for `config.steps` optimiser steps.

    Args:
        accelerator ([`accelerate.Accelerator`]): Of this stage.
        model (`nn.Module`): Trained in place; with `use_ema` it holds the averaged weights in the end.
        num_rows (`int`): Rows of the training data, from which `GlobalBatch.indices` are dealt.
        loss_fn (`Callable`): Maps the prepared model and a [`GlobalBatch`] to the mean loss of this process's rows.
        config ([`OptimizationConfig`]): Hyper-parameters.
        output_dir (`Path`): Where `checkpoint-N/` and `train_log.jsonl` are written.
        description (`str`): Name on the progress bar and of the tracker.
        resume_from_checkpoint (`str`, *optional*): Folder of a checkpoint, or `"latest"` for the last complete one in
            `output_dir`, if there is one.

    Returns:
        `tuple`: the model without wrappers, and the loss history `[{"step", "loss", "lr"}]`.

    Raises:
        ValueError: the checkpoint named does not exist.
        FloatingPointError: the loss became NaN or infinite.
    """
    set_seed(config.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        foreach=True,
    )
    # Not prepared by Accelerate, which would step it once per process.
    lr_scheduler = get_scheduler(
        config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=config.steps
    )
    ema = None
    if config.use_ema:
        ema = EMAModel(model.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
        ema.to(accelerator.device)
        accelerator.register_for_checkpointing(ema)
    accelerator.register_for_checkpointing(lr_scheduler)
    model, optimizer = accelerator.prepare(model, optimizer)
    if config.report_to != "none":
        # TensorBoard takes nothing but scalars and text.
        values = {key: str(v) if v is None or isinstance(v, tuple) else v for key, v in config.model_dump().items()}
        accelerator.init_trackers("pdiff", values)

    # 1. Resume
    first_step, history = 0, []
    checkpoint = latest_checkpoint(output_dir) if resume_from_checkpoint == "latest" else resume_from_checkpoint
    if checkpoint is not None:
        checkpoint = Path(checkpoint)
        if not checkpoint.is_dir():
            raise ValueError(f"resume_from_checkpoint: expected a checkpoint folder, {checkpoint} does not exist.")
        accelerator.load_state(str(checkpoint))
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        first_step, history = state["step"], state["history"]

    # 2. Steps
    bar = tqdm(
        range(first_step, config.steps),
        desc=description,
        total=config.steps,
        initial=first_step,
        disable=not accelerator.is_main_process,
        leave=False,
    )
    model.train()
    losses = []
    for step in bar:
        for micro_step in range(config.gradient_accumulation_steps):
            batch = GlobalBatch(
                num_rows,
                config.train_batch_size,
                step * config.gradient_accumulation_steps + micro_step,
                config.seed,
                rank=accelerator.process_index,
                world_size=accelerator.num_processes,
                device=accelerator.device,
            )
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    loss = loss_fn(model, batch)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
        lr_scheduler.step()
        if ema is not None:
            ema.step(accelerator.unwrap_model(model).parameters())

        # 3. Log, at the same steps whether resumed or not
        done = step + 1
        if done % LOG_EVERY == 0 or done == config.steps or done % config.checkpointing_steps == 0:
            mean_loss = accelerator.reduce(torch.stack(losses).float().mean(), reduction="mean").item()
            losses.clear()
            if not torch.isfinite(torch.tensor(mean_loss)):
                raise FloatingPointError(
                    f"{description}: the loss is {mean_loss} at step {done}; the last good checkpoint is "
                    f"{latest_checkpoint(output_dir) or 'none'}. Lower learning_rate or set mixed_precision to no."
                )
            history.append({"step": done, "loss": mean_loss, "lr": lr_scheduler.get_last_lr()[0]})
            accelerator.log({"loss": mean_loss, "lr": history[-1]["lr"]}, step=done)
            bar.set_postfix(loss=f"{mean_loss:.4g}", refresh=False)
        if done % config.checkpointing_steps == 0 and done < config.steps:
            _save_checkpoint(accelerator, output_dir, done, history, config.checkpoints_total_limit)

    # Not end_training(), which also destroys the process group: the stage is not over.
    for tracker in accelerator.trackers:
        tracker.finish()
    model = accelerator.unwrap_model(model)
    if ema is not None:
        ema.copy_to(model.parameters())
    model.eval()
    if accelerator.is_main_process:
        with atomic_write(output_dir / LOG_FILE) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in history))
    return model, history


def _save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, history: list, limit: int) -> None:
    final = output_dir / f"checkpoint-{step}"
    partial = output_dir / f".partial-checkpoint-{step}"
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / "trainer_state.json").write_text(json.dumps({"step": step, "history": history}))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in complete_checkpoints(output_dir)[:-limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
