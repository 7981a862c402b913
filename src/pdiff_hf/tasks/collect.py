"""Collection of checkpoints: the base model is trained on, and its selected tensors are saved at every step."""

from __future__ import annotations

import copy
import itertools
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from pydantic import BaseModel as PydanticModel
from pydantic import ConfigDict, Field
from torch import nn
from tqdm.auto import tqdm

from ..base_model import BaseModel, forward_logits
from ..data.dataset import dataset_vectors, load_parameter_dataset, update_columns
from ..data.record import ParameterRecorder
from ..evaluation.evaluator import ParameterEvaluator
from ..evaluation.forward import FullForward, split_if_exportable
from ..layout import ParameterLayout
from .base_training import BaseTrainingConfig, train_base_model
from .image_classification import MAX_CACHE_BYTES, ImageClassification

# Wang et al. 2024, arXiv 2402.13144, v3: a subset is trained on with a higher learning rate than the whole network.
SUBSET_LEARNING_RATE = 3e-2
WHOLE_LEARNING_RATE = 3e-3


class CollectConfig(PydanticModel):
    """The recipe's `collect` section; AdamW with a constant learning rate, the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid")

    select: str | list[str] = Field("last_norms:2", description="`all`, `last_norms:K`, `head`, or globs on names")
    buffers: bool = Field(False, description="also collect the running statistics of the selected norm layers")
    num_checkpoints: int = Field(300, ge=2, description="of each run")
    every: int = Field(1, ge=1, description="steps between checkpoints")
    learning_rate: float | None = Field(None, gt=0, description="null: 3e-2 for a subset, 3e-3 for the whole network")
    weight_decay: float = Field(5e-4, ge=0)
    train_batch_size: int = Field(128, ge=1)
    runs: int = Field(1, ge=1, description="each continues from the base model with another order of the images")
    independent: bool = Field(False, description="every further run starts from a base model of its own")


def check_collection(model: nn.Module, config: CollectConfig, output_dir: str | Path) -> ParameterLayout:
    """What can be checked before any training: the selection and the folder.

    Args:
        model (`nn.Module`): The base model, trained or not.
        config ([`CollectConfig`]): Hyper-parameters.
        output_dir (`str` or `Path`): Folder of the parameter dataset to be.

    Returns:
        [`ParameterLayout`]: The selected tensors.

    Raises:
        ValueError: the selection is empty, `independent` leaves tensors out, or `output_dir` is not empty.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"expected an empty or new folder for the checkpoints, found that {output_dir} is neither")
    layout = ParameterLayout.from_model(model, config.select, config.buffers)
    if config.independent and config.runs > 1:
        floats = [name for name, tensor in model.state_dict().items() if tensor.is_floating_point()]
        if left_out := [name for name in floats if name not in layout.names]:
            raise ValueError(
                f"expected independent runs to collect every tensor, found that {left_out[0]!r} is left out; set "
                "collect.select=all and collect.buffers=true, or collect.independent=false"
            )
    return layout


def collect_checkpoints(
    task: ImageClassification,
    base_model: BaseModel,
    model: nn.Module,
    base_training: BaseTrainingConfig,
    config: CollectConfig,
    output_dir: str | Path,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    trusted_imports: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains the selected tensors on and writes a parameter dataset with `runs * num_checkpoints` rows.

    Everything that is not selected stays as it is, so that a row and the base model are the trained network: see
    [`train_selection`]. In the end val and test accuracy of all rows are computed and written to the dataset;
    `train_loss` is that of the batch of the checkpoint's step.

    Args:
        task ([`ImageClassification`]): The images.
        base_model ([`BaseModel`]): How `model` is built; the dataset carries it with the weights of `model`.
        model (`nn.Module`): The trained base model. It is not changed.
        base_training ([`BaseTrainingConfig`]): How it was trained; `independent` runs train in the same way.
        config ([`CollectConfig`]): Hyper-parameters.
        output_dir (`str` or `Path`): Folder of the parameter dataset.
        seed (`int`, *optional*, defaults to 0): Run `r` shuffles the images by `seed + r`.
        device (`torch.device` or `str`, *optional*): Where to train; that of `model` by default.
        progress (`bool`, *optional*, defaults to `True`): Whether to show progress bars.
        trusted_imports (`Sequence[str]`, *optional*): Passed to [`BaseModel.build`] for `independent` runs.

    Returns:
        `dict[str, Any]`: `num_checkpoints`, `num_parameters`, and mean `val_accuracy` and `test_accuracy` (fractions).

    Raises:
        ValueError: as [`check_collection`], or the loss is no longer finite.
    """
    device = torch.device(device) if device is not None else next(model.parameters()).device
    layout = check_collection(model, config, output_dir)
    output_dir = Path(output_dir)

    # 1. Train on and record, into a folder that gets its name when it is complete
    folder = output_dir.with_name(f".{output_dir.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    base_model = base_model.save_weights(model, folder)
    metadata = {
        "task": task.config.model_dump(mode="json"),
        "base_training": base_training.model_dump(mode="json"),
        "collect": config.model_dump(mode="json"),
    }
    total = config.runs * config.num_checkpoints
    with tqdm(total=total, desc="collect", disable=not progress, leave=False) as bar:
        for run in range(config.runs):
            network = copy.deepcopy(model).to(device)
            if config.independent and run > 0:
                run_training = base_training.model_copy(update={"seed": base_training.seed + run})
                set_seed(run_training.seed)
                network = replace(base_model, weights=None, sha256=None).build(trusted_imports)
                train_base_model(task, network, run_training, device, progress)
            first_epoch = base_training.epochs
            recorder = ParameterRecorder(
                layout, folder, base_model, run=f"run-{run}", seed=seed + run, metadata=metadata
            )
            with recorder:
                for step, epoch, loss in train_selection(task, network, layout, config, seed + run, first_epoch):
                    recorder.record(network, step=step, epoch=epoch, loss=loss)
                    bar.update()

    # 2. Accuracies of all rows, both splits in one pass
    dataset, layout = load_parameter_dataset(folder)
    (val_images, val_labels), (test_images, test_labels) = task.arrays("val"), task.arrays("test")
    images, labels = torch.cat([val_images, test_images]), torch.cat([val_labels, test_labels])
    evaluator = ParameterEvaluator(model, layout, images, labels, device=device)
    correct = evaluator.predictions(dataset_vectors(dataset, layout)) == labels
    val, test = (part.float().mean(1) for part in correct.split([len(val_labels), len(test_labels)], dim=1))
    update_columns(folder, {"val_accuracy": val.tolist(), "test_accuracy": test.tolist()})
    folder.rename(output_dir)
    return {
        "num_checkpoints": total,
        "num_parameters": layout.num_parameters,
        "val_accuracy": val.mean().item(),
        "test_accuracy": test.mean().item(),
    }


def train_selection(
    task: ImageClassification,
    network: nn.Module,
    layout: ParameterLayout,
    config: CollectConfig,
    seed: int = 0,
    first_epoch: int = 0,
    schedule: Callable[[int], float] | None = None,
) -> Iterator[tuple[int, float, float]]:
    """Trains the tensors of a layout in place, everything else fixed, and stops at every checkpoint.

    The network is in eval mode, except for norm layers whose running statistics are in the layout: what is not
    collected must not change, dropout and the statistics of frozen layers included. (The authors' code trains in train
    mode and so changes running statistics that it does not save.) When only a part of the network depends on the
    selection and the images are not augmented, the rest is computed once.

    Args:
        task ([`ImageClassification`]): The images.
        network (`nn.Module`): Trained in place.
        layout ([`ParameterLayout`]): The selected tensors.
        config ([`CollectConfig`]): Hyper-parameters.
        seed (`int`, *optional*, defaults to 0): Of the order of the images.
        first_epoch (`int`, *optional*, defaults to 0): Epochs that came before, so that the order is a new one.
        schedule (`Callable`, *optional*): Factor of the learning rate by step; constant by default.

    Yields:
        `tuple[int, float, float]`: steps done, epochs done, and the loss of the last batch before its step.

    Raises:
        ValueError: no selected tensor is a parameter, or the loss is no longer finite.
    """
    # 1. What is trained, and which norm layers follow the data
    parameters = dict(network.named_parameters())
    trained = {name: parameter for name, parameter in parameters.items() if name in layout.names}
    if not trained:
        raise ValueError(f"expected a selection with parameters, found buffers only: {layout.names}; select others")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
    network.eval()
    followed = {name.rpartition(".")[0] for name in layout.names if name.endswith((".running_mean", ".running_var"))}
    for name, module in network.named_modules():
        if name in followed:
            module.train()
    learning_rate = config.learning_rate or (
        WHOLE_LEARNING_RATE if len(trained) == len(parameters) else SUBSET_LEARNING_RATE
    )
    optimizer = torch.optim.AdamW(trained.values(), lr=learning_rate, weight_decay=config.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule or (lambda step: 1.0))

    # 2. Steps
    device = next(iter(trained.values())).device
    shared = None
    if (
        len(trained) < len(parameters)
        and not followed
        and task.config.augment == "none"
        and task.fits_in_memory("train")
    ):
        shared = _share_prefix(task, network, layout, config.train_batch_size)
    step = 0
    for epoch in itertools.count():
        order = ("train", config.train_batch_size, seed, first_epoch + epoch)
        num_batches = len(task.batch_indices(*order))
        if shared is None:
            batches = ((forward_logits(network, x.to(device)), y.to(device)) for x, y in task.batches(*order))
        else:
            activations, tail, labels = shared
            batches = (
                (tail(tuple(a[index] for a in activations), trained), labels[index])
                for index in task.batch_indices(*order)
            )
        for logits, labels_ in batches:
            loss = nn.functional.cross_entropy(logits, labels_)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            step += 1
            if step % config.every:
                continue
            if not math.isfinite(loss.item()):
                raise ValueError(
                    f"expected a finite loss, found {loss.item()} at step {step}; lower collect.learning_rate"
                )
            yield step, step / num_batches, loss.item()
            if step == config.every * config.num_checkpoints:
                return


@torch.no_grad()
def _share_prefix(task: ImageClassification, network: nn.Module, layout: ParameterLayout, batch_size: int):
    """Activations of all train images where the selection comes in, the rest of the network, and the labels.

    `None` when the network cannot be cut there or the activations need too much memory.
    """
    device = next(network.parameters()).device
    images, labels = task.arrays("train")
    batch_size = min(batch_size, len(images))
    full = FullForward(network, device)
    forward = split_if_exportable(full, images[:batch_size].to(device), layout.names, "step")
    if forward is full:
        return None
    chunks = []
    for start in range(0, len(images), batch_size):
        # The exported graph knows one batch size only, so the last batch overlaps the one before.
        first = min(start, len(images) - batch_size)
        activations = forward.prefix(images[first : first + batch_size].to(device))
        num_bytes = sum(tensor.nbytes for tensor in activations) * len(images) / batch_size
        if num_bytes > MAX_CACHE_BYTES or any(len(tensor) != batch_size for tensor in activations):
            return None
        chunks.append([tensor[start - first :] for tensor in activations])
    activations = tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))
    return activations, forward.tail, labels.to(device)
