"""Training of the base model, before checkpoints are collected."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from torch import nn

from ..base_model import BaseModel
from ..files import read_json, write_json
from ..forward import forward_logits
from ..graphs import graphed, takes_graphs
from ..host_copy import to_device
from ..machine import ThreadChoice, default_device, precision_of, process_state
from ..progress import ProgressBar
from .components import fit_components
from .config import BaseTrainingConfig
from .task import Task

RESULT_FILE = "base_training.json"


def train_base_model(
    task: Task,
    model: nn.Module,
    config: BaseTrainingConfig,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains a model on the train images, all parameters that require a gradient.

    Args:
        task ([`Task`]): The examples.
        model (`nn.Module`): Trained in place; in eval mode and on `device` in the end.
        config ([`BaseTrainingConfig`]): Hyper-parameters.
        device (`torch.device` or `str`, *optional*): Where to train; an accelerator when there is one by default.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Returns:
        `dict[str, Any]`: `val_accuracy`, `test_accuracy` (fractions), `train_loss` (`list[float]`, of epochs), and
        `threads`, how many of them were taken.

    Raises:
        ValueError: the model does not give logits `(B, num_classes)`, or the loss is no longer finite.
    """
    device = torch.device(device or default_device())
    set_seed(config.seed)
    fit_components(task, model.to(device).eval())
    model.train()
    history, threads, steps = [], ThreadChoice(device), num_training_steps(task, config)

    examples = task.examples("train", device)

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        for epoch in range(config.epochs):
            yield from examples.batches(config.train_batch_size, config.seed, epoch)

    def loss_of(index: torch.Tensor, *loaded: torch.Tensor) -> torch.Tensor:
        labels = examples.labels[index]
        with torch.autocast(device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
            logits = forward_logits(model, examples.inputs(index, *loaded))
        if logits.shape != (len(labels), task.num_classes):
            raise ValueError(
                f"expected logits {(len(labels), task.num_classes)} from the base model, found "
                f"{tuple(logits.shape)}; set num_classes of the base model to {task.num_classes}"
            )
        return nn.functional.cross_entropy(logits.float(), labels)

    training = train_steps(task, model.parameters(), loss_of, batches(), config, device, threads)
    with ProgressBar(total=steps, desc="base training", disable=not progress, leave=False) as bar:
        for epoch in range(config.epochs):
            losses = []
            for loss in itertools.islice(training, steps // config.epochs):
                losses.append(loss)
                bar.update()
            history.append(torch.stack(losses).mean().item())
            if not math.isfinite(history[-1]):
                raise ValueError(
                    f"expected a finite loss, found {history[-1]} in epoch {epoch}; lower base_training.learning_rate"
                )
            bar.set_postfix(loss=f"{history[-1]:.4f}", refresh=False)
    model.eval()
    val, test = _accuracy(model, task, "val"), _accuracy(model, task, "test")
    return {"val_accuracy": val, "test_accuracy": test, "train_loss": history, "threads": str(threads)}


def num_training_steps(task: Task, config: BaseTrainingConfig) -> int:
    """Optimiser steps of a training: whole epochs of all train examples."""
    return config.epochs * len(task.batch_indices("train", config.train_batch_size))


def train_steps(
    task: Task,
    parameters: Iterable[torch.Tensor],
    loss_of: Callable[..., torch.Tensor],
    batches: Iterable[tuple],
    config: BaseTrainingConfig,
    device: torch.device,
    threads: ThreadChoice | None = None,
) -> Iterator[torch.Tensor]:
    """Make the steps of a training and yield the loss of each one's batch, before the step.

    AdamW with a cosine schedule, for the parameters that require a gradient. `loss_of` gives the loss of a batch, or
    the losses `(R,)` of R networks, whose sum has the gradient of every network's own. Batches are tensors on the
    device, in whose place a CUDA graph may put those of other steps.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    optimizer = torch.optim.AdamW(trainable, **options, fused=takes_graphs(device) or None)
    steps, threads = num_training_steps(task, config), threads or ThreadChoice(device)
    lr_scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=steps)

    def update(*batch: torch.Tensor) -> tuple[torch.Tensor]:
        optimizer.zero_grad()
        losses = loss_of(*batch)
        losses.sum().backward()
        optimizer.step()
        return (losses.detach(),)

    # Autocast keeps weights that it has cast, which a graph would not cast again.
    advance = update if config.mixed_precision == "bf16" else graphed(update, optimizer)
    for batch in itertools.islice(batches, steps):
        with threads.step(), precision_of("training"):
            (losses,) = advance(*batch)
            lr_scheduler.step()
        # A graph writes the next ones to the same place.
        yield losses.clone()
    optimizer.zero_grad()


def train_base_model_once(
    task: Task,
    base_model: BaseModel,
    model: nn.Module,
    config: BaseTrainingConfig,
    folder: str | Path,
    is_fixed: bool = False,
) -> tuple[nn.Module, dict[str, Any]]:
    """Trains a base model unless a folder holds the result of the same training, and keeps the result there.

    One that `is_fixed` is not trained, only its components are fitted.

    Of several processes of `accelerate launch`, which share the folder, the main one trains.

    The folder receives `base/model.safetensors` and `base_training.json`; what another training has left there is
    removed. `base_model` says how `model` is built.

    Returns:
        `tuple[nn.Module, dict]`: the trained network on the accelerator, if there is one, and what
        [`train_base_model`] returns.

    Raises:
        ValueError: as [`train_base_model`], or the weights in the folder are damaged.
    """
    state, folder = process_state(), Path(folder)
    file = folder / RESULT_FILE
    plan = {
        "task": task.config.model_dump(mode="json"),
        "base_model": base_model.to_dict(),
        "base_training": config.model_dump(mode="json"),
    }
    is_known = file.is_file() and read_json(file)["plan"] == plan
    # The main process writes no result before all have looked.
    state.wait_for_everyone()
    if not is_known and state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        if is_fixed:
            fit_components(task, model.to(default_device()))
        result = {} if is_fixed else train_base_model(task, model, config)
        stored = base_model.save_weights(model, folder).to_dict()
        write_json(file, {"plan": plan, "result": result, "stored": stored})
    state.wait_for_everyone()
    known = read_json(file)
    if is_known or not state.is_main_process:
        model = BaseModel.from_dict(known["stored"], root=folder).build(base_model.trusted_imports)
    return model.to(default_device()), known["result"]


@torch.no_grad()
def _accuracy(model: nn.Module, task: Task, split: str) -> float:
    inputs, labels = task.arrays(split)
    device = next(model.parameters()).device
    predicted = [forward_logits(model, to_device(batch, device)).argmax(-1) for batch in inputs.split(500)]
    return (torch.cat(predicted) == labels.to(device)).float().mean().item()
