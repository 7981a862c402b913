"""Evaluation of a run whose networks are of many tasks: those that it generates for tasks that nobody trained."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..data.dataset import ParameterDataset
from ..data.vectors import Vectors
from ..evaluation.unseen_tasks.adapter_merges import adapter_merges
from ..evaluation.unseen_tasks.evaluate import LatentSpace, evaluate_unseen_tasks
from ..evaluation.unseen_tasks.networks import TaskNetworks
from ..evaluation.unseen_tasks.verdict import tasks_verdict
from ..files import errors_of, read_json
from ..machine import process_state
from ..models.auto import connect_network, load_autoencoder
from ..pipelines.network_folder import load_generated, read_index
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..pipelines.sampling import load_pipeline, make_scheduler
from ..results.metrics import SCHEMA, Metrics
from ..results.tasks import TaskResults
from ..tasks.conditions import row_subsets, subset_for, task_labels
from ..tasks.families_config import ROLES, TASKS
from ..tasks.task import Task
from ..tasks.task_rivals import TaskTraining, multi_task_accuracies
from ..tasks.unseen_tasks import has_task_networks, open_task_networks, places_of
from ..training.perceptron import fit_perceptrons
from .names import row_names
from .recipe import EvaluateConfig

# Examples of every class, for training from the mean of the networks seen.
SHOTS = (1, 5, 20)


def conditions_of_unseen(dataset: ParameterDataset, num_samples: int) -> list[dict[str, Any]]:
    """As many conditions for every unseen task of a collection, one task after another.

    Where a condition says more than the subset, such as an accuracy, it is the mean of the networks seen.
    """
    unseen, spec = ParameterDataset(dataset.folder, ROLES["unseen"]), dataset.condition_spec
    if spec.kind == "text":
        described = list(dict.fromkeys(unseen.condition_texts))
    else:
        subsets = row_subsets(unseen)[1].unique(dim=0)
        described = [spec.describe(values) for values in _whole_conditions(dataset, subsets).tolist()]
    return [told if spec.parts else {spec.kind: told} for told in described for _ in range(num_samples)]


def _whole_conditions(dataset: ParameterDataset, subsets: torch.Tensor) -> torch.Tensor:
    """Conditions `(T, size)` of unseen subsets `(T, C)`, all else as the networks seen have it on average."""
    part = dataset.condition_spec.part("classes")
    if part is None:
        unseen = ParameterDataset(dataset.folder, ROLES["unseen"])
        same = (row_subsets(unseen)[1][None] == subsets[:, None]).all(2)
        return unseen.conditions()[same.int().argmax(1)]
    whole = dataset.conditions().mean(0).expand(len(subsets), -1).clone()
    whole[:, part[1]] = subsets
    return whole


def check_tasks(dataset: ParameterDataset) -> None:
    """Raise `ValueError` for a collection without networks of validation and unseen tasks."""
    if not has_task_networks(dataset):
        raise ValueError(
            f"{dataset.source}: expected networks of validation and unseen tasks, with which generated ones are "
            "compared, found none; collect them (collect.validation, collect.unseen)."
        )


def evaluate_tasks(
    dataset: ParameterDataset,
    task: Task,
    config: EvaluateConfig,
    pipeline_dir: Path,
    generated_dir: Path,
    generator_seconds: float | None = None,
    known: TaskResults | None = None,
) -> Metrics:
    """Judge networks that were generated for the unseen tasks of a collection, beside other ways to such networks.

    With `generator_seconds`, what training the generator took, networks are fine-tuned for their share of it. What
    does not depend on the generator is taken of `known` results of another one of the same collection.

    Raises:
        ValueError: the networks are not those of these tasks, as many of each.
    """
    options = {"batch_size": config.batch_size, "max_cache_bytes": config.max_cache_mb * 2**20}
    seen = open_task_networks(dataset, "seen", task)
    validation = open_task_networks(dataset, "validation", task, "val", **options)
    unseen = open_task_networks(dataset, "unseen", task, "test", **options)
    generated = _in_order(generated_dir, dataset, unseen)
    pipe = load_pipeline(pipeline_dir)
    wanted, draws = _whole_conditions(dataset, unseen.distinct), len(generated) // len(unseen)
    further, drawing = _further_draws(pipe, read_index(generated_dir), wanted, draws)
    trained, accuracies, seconds = {}, {}, {}
    if known is None:
        trained, accuracies, seconds = _trained(dataset, task, seen, unseen, generator_seconds, config)
    results = evaluate_unseen_tasks(
        seen,
        validation,
        unseen,
        generated,
        _latent_space(dataset, pipeline_dir),
        further={**further, **trained},
        accuracies=accuracies,
        merges=None if known else _merges(dataset, seen, config.seed),
        fit=partial(fit_perceptrons, steps=_denoiser_steps(pipeline_dir)),
        seconds={"generated": drawing, **seconds},
        known=known,
        seed=config.seed,
    )
    results.split = dataset.metadata.get(TASKS, {}).get("split")
    metrics = Metrics(
        version=SCHEMA,
        num_parameters=dataset.layout.num_parameters,
        num_test=unseen.evaluator.num_examples,
        tasks=results,
        seed=config.seed,
    )
    metrics.finding, metrics.verdict = tasks_verdict(results)
    return metrics


def _trained(
    dataset: ParameterDataset,
    task: Task,
    seen: TaskNetworks,
    unseen: TaskNetworks,
    generator_seconds: float | None,
    config: EvaluateConfig,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, float]]:
    """Networks and accuracies of ways that learn from labels, and seconds of one network."""
    if dataset.metadata.get("base_training") is None:
        # Nobody knows how its networks were trained.
        return {}, {}, {}
    targets = unseen.evaluator.targets.cpu()
    together = multi_task_accuracies(dataset, task, unseen.distinct, targets)
    accuracies = {} if together is None else {"multi_task": together}
    mean, seed = seen.vectors[:].mean(0), config.seed
    labels = torch.stack([*task_labels(ParameterDataset(dataset.folder, ROLES["unseen"]), task, "train")[0].values()])
    training = TaskTraining(dataset, task, labels, mean)
    seconds = {"oracle": training.seconds}
    if not config.rivals:
        return {}, accuracies, seconds
    networks = {f"few_shot_{shots}": training.few_shot(shots, seed) for shots in SHOTS}
    if generator_seconds is not None:
        networks["fine_tuned"], seconds["fine_tuned"] = training.fine_tuned(generator_seconds / len(unseen))
    known = torch.stack([*task_labels(dataset, task, "train")[0].values()])
    spread = seen.vectors[:].std(0)
    steps = config.hypernetwork_steps
    writer = TaskTraining(dataset, task, known, mean).hypernetwork(seen.distinct, spread, steps, seed)
    networks["hypernetwork"] = writer(unseen.distinct)
    return networks, accuracies, seconds


def _merges(dataset: ParameterDataset, seen: TaskNetworks, seed: int) -> dict[str, Any]:
    """Ways that merge adapters; none of other networks."""
    if dataset.base_model.adapter is None:
        return {}
    start = dataset.layout.flatten(dataset.base_model.state_dict())
    return adapter_merges(dataset.layout, seen, start, seed)


# Networks seen that are shown in a plane.
MAX_SHOWN = 600


def task_latents(
    dataset: ParameterDataset, task: Task, pipeline_dir: Path, generated_dir: Path
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, list[tuple[str, str]]]]:
    """Latents `(n, C * L)` of networks seen, trained on unseen tasks and generated for these, sizes `(n,)` and names.

    A size is how many classes the subset of a network's task has; names are those of a network and of its task. Of the
    networks seen, some are taken.
    """
    seen, unseen = (open_task_networks(dataset, role, task) for role in ("seen", "unseen"))
    order, space = _order(generated_dir, dataset, unseen), _latent_space(dataset, pipeline_dir)
    generated, files = load_generated(generated_dir, dataset.layout)[order], read_index(generated_dir)["files"]
    some = torch.linspace(0, len(seen.vectors) - 1, min(MAX_SHOWN, len(seen.vectors))).round().long()
    vectors = {"seen": seen.vectors[some], "oracle": unseen.vectors, "generated": generated}
    sizes = {"seen": seen.conditions[some].sum(1), "oracle": unseen.conditions.sum(1)}
    sizes["generated"] = unseen.distinct.sum(1).repeat_interleave(len(generated) // len(unseen))
    draws, own = len(generated) // len(unseen), row_names(ParameterDataset(dataset.folder, ROLES["unseen"]))
    called = row_names(dataset)
    names = {
        "seen": [(called[row], seen.names[seen.rows[row]]) for row in some.tolist()],
        "oracle": [(name, unseen.names[task]) for name, task in zip(own, unseen.rows.tolist(), strict=True)],
        "generated": [(files[row], unseen.names[place // draws]) for place, row in enumerate(order.tolist())],
    }
    latents = {name: space.encode(networks) for name, networks in vectors.items()}
    return latents, {name: size.long() for name, size in sizes.items()}, names


def _denoiser_steps(pipeline_dir: Path) -> int:
    """Steps of training of a pipeline's denoiser."""
    return int(read_json(pipeline_dir / "train_config.json")["diffusion"]["steps"])


def _in_order(generated_dir: Path, dataset: ParameterDataset, unseen: TaskNetworks) -> Vectors:
    """Generated networks, as many for every unseen task, one task after another."""
    order = _order(generated_dir, dataset, unseen)
    return load_generated(generated_dir, dataset.layout)[order]


def _order(generated_dir: Path, dataset: ParameterDataset, unseen: TaskNetworks) -> torch.Tensor:
    """The places of [`_in_order`]'s networks in their folder."""
    index = read_index(generated_dir)
    given, num = index.get("condition"), len(index["files"])
    with errors_of(generated_dir):
        if given is None:
            raise ValueError("expected networks for the unseen tasks of the dataset, found them without conditions.")
        given = given if isinstance(given, list) else [given] * num
        # Many networks for each.
        subsets = {text: subset_for(dataset, json.loads(text)) for text in {*map(json.dumps, given)}}
        places = places_of(torch.stack([subsets[json.dumps(own)] for own in given]), unseen.distinct)
    return places.argsort(stable=True)


def _latent_space(dataset: ParameterDataset, pipeline_dir: Path) -> LatentSpace:
    autoencoder = load_autoencoder(pipeline_dir / "autoencoder", process_state().device)
    connect_network(autoencoder, dataset.base_model)

    @torch.no_grad()
    def encode(vectors: Vectors) -> torch.Tensor:
        return autoencoder.scale_latents(autoencoder.encode_rows(vectors)).flatten(1).cpu()

    @torch.no_grad()
    def decode(latents: torch.Tensor) -> torch.Tensor:
        shaped = latents.to(autoencoder.device).view(-1, *autoencoder.latent_shape)
        return torch.cat([part.cpu() for part in autoencoder.decode_rows(autoencoder.unscale_latents(shaped))])

    return LatentSpace(encode, decode)


def _further_draws(
    pipe: PDiffPipeline, index: dict[str, Any], wanted: torch.Tensor, draws: int
) -> tuple[dict[str, torch.Tensor], float]:
    """Networks for other tasks than they are judged by, and what regressions expect; and seconds of one network."""
    pipe.scheduler = make_scheduler(index["scheduler"], pipe.scheduler, index["num_inference_steps"])

    def draw(conditions: torch.Tensor, truncation: float) -> torch.Tensor:
        return pipe(
            len(conditions),
            num_inference_steps=index["num_inference_steps"],
            generator=torch.Generator().manual_seed(index["seed"]),
            condition_embeds=pipe.condition_encoder.encode(conditions),
            guidance_scale=index["guidance_scale"],
            truncation=truncation,
            output_type="pt",
        ).parameters.cpu()

    order = torch.randperm(len(wanted), generator=torch.Generator().manual_seed(index["seed"]))
    others = torch.empty_like(wanted)
    others[order] = wanted[order.roll(1)]
    begin = time.perf_counter()
    shuffled = draw(others.repeat_interleave(draws, 0), index["truncation"])
    seconds = (time.perf_counter() - begin) / len(shuffled)
    return {"shuffled": shuffled, "expected": draw(wanted, 0.0)}, seconds
