"""Task and evaluators of a parameter dataset: the only place where they are made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..base_model import BaseModel
from ..data.dataset import ParameterDataset
from ..evaluation.evaluator import ParameterEvaluator
from ..evaluation.scores import NetworkEvaluator
from ..files import errors_of
from ..forward import forward_logits, input_dtype
from ..identity import NetworkIdentity
from ..layout import ParameterLayout
from ..machine import process_state
from ..wording import argument
from .auto import load_task
from .conditions import condition_labels, have_own_tasks, row_subsets, subset_for, task_labels
from .config import FunctionConfig, SplitConfig
from .function import FunctionTask
from .populations import population_labels
from .splits import Split
from .task import Task

AnyTask = Task | FunctionTask
"""What networks are judged by: labelled examples, or a function."""


def load_any_task(
    config: SplitConfig | FunctionConfig | Mapping[str, Any],
    base_model: BaseModel | None = None,
    trusted_imports: Sequence[str] = (),
) -> AnyTask:
    """The task of a configuration, validated or as JSON; functions that are not trusted are refused."""
    if isinstance(config, FunctionConfig) or (isinstance(config, Mapping) and config.get("kind") == "function"):
        return FunctionTask(config, trusted_imports)
    return load_task(config, base_model)


def load_given_task(given: SplitConfig | FunctionConfig, base_model: BaseModel | None) -> AnyTask:
    """The task that a user has typed: a function of it is trusted."""
    return load_any_task(given, base_model, [given.function] if isinstance(given, FunctionConfig) else ())


def open_task(dataset: ParameterDataset, given: SplitConfig | FunctionConfig | None = None) -> AnyTask | None:
    """The task that a parameter dataset names, or the one that is `given`; `None` when there is neither.

    A function that is given is run; one that the dataset names has to be among its trusted imports.

    Raises:
        ValueError: the examples are not where they should be, or the function cannot be loaded or is not trusted.
    """
    if given is not None:
        return load_given_task(given, dataset.base_model)
    if dataset.task is None:
        return None
    with errors_of(f"task of {dataset.folder / 'stats.json'}"):
        trusted = () if dataset.base_model is None else dataset.base_model.trusted_imports
        return load_any_task(dataset.task, dataset.base_model, trusted)


def require_task(dataset: ParameterDataset, given: SplitConfig | FunctionConfig | None = None) -> AnyTask:
    """As [`open_task`]; raises `ValueError` when there is no task, or the dataset has no base model to evaluate."""
    if dataset.base_model is None:
        raise ValueError(f"{dataset.folder} names no base model; to evaluate networks, a dataset needs one.")
    if (task := open_task(dataset, given)) is None:
        raise ValueError(
            f"{dataset.folder} names no task; to evaluate networks, give {argument('task', '…', 'SPEC')}: the name of "
            "a data set (pdiff recipes), or a function of yours that scores a network, nets.py:evaluate."
        )
    return task


def make_evaluator(
    dataset: ParameterDataset,
    split: str,
    task: AnyTask | None = None,
    *,
    model: nn.Module | None = None,
    layout: ParameterLayout | None = None,
    **options: Any,
) -> NetworkEvaluator:
    """An evaluator of the dataset's networks, which shares them among the processes of `accelerate launch`.

    Task, base model and layout of the vectors are those of the dataset, unless they are given. `split` is `"train"`,
    `"val"` or `"test"`, and `options` are those of [`ParameterEvaluator`]: `batch_size` and so on, which mean nothing
    to a function. Of several populations, a network is judged by the labels that it fits best.

    Raises:
        ValueError: see [`require_task`] and [`BaseModel.build`], the network does not take the inputs, or every row
            has labels of its own.
    """
    task = task or require_task(dataset)
    if have_own_tasks(dataset, task):
        raise ValueError(
            f"{dataset.source}: expected networks of one task, found {dataset.condition_spec.summary}, each a task of "
            "its own; compare their predictions with the labels of condition_labels, or give a function of yours that "
            f"scores a network, {argument('task', '…', 'nets.py:evaluate')}."
        )
    return judge_networks(
        task,
        split,
        model or dataset.base_model.build(),
        layout or dataset.layout,
        identity=dataset.identity,
        metadata=dataset.metadata,
        **options,
    )


def judge_networks(
    task: AnyTask,
    split: str,
    model: nn.Module,
    layout: ParameterLayout,
    *,
    identity: NetworkIdentity | None = None,
    metadata: Mapping[str, Any] | None = None,
    populations: Mapping[str, torch.Tensor] | None = None,
    **options: Any,
) -> NetworkEvaluator:
    """As [`make_evaluator`], of networks that are in no dataset.

    Populations are those of `metadata`, or `populations`, labels `(N,)` by their names, all of them different.
    """
    state = process_state()
    if isinstance(task, FunctionTask):
        return task.evaluator(split, model, layout, identity, state)
    known = {"device": state.device, "accelerator": state, "identity": identity}
    if populations is None:
        populations = _told_apart(population_labels(task, metadata or {}, split))
    inputs, labels = task.arrays(split)
    # Of half precision, a CPU may lack operations that the evaluator's device has.
    tried = inputs[: 2 if input_dtype(model).itemsize > 2 else 0]
    try:
        if len(tried):
            with torch.no_grad():
                logits = forward_logits(model, tried)
            if logits.ndim != 2:
                raise TypeError(f"it gives {tuple(logits.shape)} for {len(tried)}, not logits of classes")
    except (RuntimeError, IndexError, TypeError, AttributeError) as error:
        keys = "image_size or in_chans" if task.noun == "images" else "max_length or tokenizer"
        raise ValueError(
            f"task: expected a network that takes {task.noun} {tuple(inputs.shape[1:])}, found that it fails on them "
            f"({str(error).splitlines()[0]}); change {keys} of the task, or judge it by a function of your own."
        ) from error
    return ParameterEvaluator(model, layout, inputs, labels, populations=populations, **{**known, **options})


def make_val_and_test(
    dataset: ParameterDataset, task: AnyTask, **options: Any
) -> tuple[NetworkEvaluator, NetworkEvaluator]:
    """Evaluators of what networks are chosen on and of what is reported; one for both where they are the same."""
    val = make_evaluator(dataset, "val", task, **options)
    return val, make_evaluator(dataset, "test", task, **options) if task.has_splits else val


def _told_apart(labels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Populations with labels of their own; those with the same labels are one, by all of their names."""
    names: dict[bytes, list[str]] = {}
    for name, own in labels.items():
        names.setdefault(own.numpy().tobytes(), []).append(name)
    return {", ".join(same): labels[same[0]] for same in names.values()}


def make_task_evaluator(
    dataset: ParameterDataset, split: Split, task: Task | None = None, **options: Any
) -> ParameterEvaluator:
    """An evaluator of networks of the tasks of a dataset, each judged by the labels of its own.

    `evaluator.rows` is the task of every row, its place in `evaluator.populations`; [`ParameterEvaluator.predict`] has
    to be told that of every network. Arguments are those of [`make_evaluator`].
    """
    task, model = task or require_task(dataset), dataset.base_model.build()
    populations, rows = task_labels(dataset, task, split)
    given = {"identity": dataset.identity, "populations": populations, "rows": rows}
    return judge_networks(task, split, model, dataset.layout, **given, **options)


def make_condition_evaluator(
    dataset: ParameterDataset, split: Split, condition: Mapping[str, Any], task: Task | None = None, **options: Any
) -> ParameterEvaluator:
    """An evaluator of networks that are made for one condition, by the labels of its task.

    Arguments are those of [`make_evaluator`], and `condition` as a pipeline takes it.

    Raises:
        ValueError: the condition is none of the dataset's kind, or says no task.
    """
    task = task or require_task(dataset)
    if not have_own_tasks(dataset, task):
        raise ValueError(
            f"{dataset.source}: its networks are of one task, and judged by its labels; leave "
            f"{argument('condition')} out."
        )
    with errors_of(argument("condition")):
        wanted = subset_for(dataset, condition)
    labels = condition_labels(task.labels(split), task.class_names, row_subsets(dataset)[0], wanted[None])[0]
    given = {"identity": dataset.identity, "populations": {"condition": labels}}
    return judge_networks(task, split, dataset.base_model.build(), dataset.layout, **given, **options)


def make_gate_evaluator(dataset: ParameterDataset, task: AnyTask | None = None) -> NetworkEvaluator | None:
    """What the gate judges networks with, on the validation examples; `None` where nobody knows how.

    That is so without a base model or a task. Where rows have labels of their own, see [`make_task_evaluator`].
    """
    if dataset.base_model is None or (task or dataset.task) is None:
        return None
    task = task or require_task(dataset)
    make = make_task_evaluator if have_own_tasks(dataset, task) else make_evaluator
    return make(dataset, "val", task)
