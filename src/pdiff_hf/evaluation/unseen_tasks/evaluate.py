"""The protocol of unseen tasks: generated networks beside those trained on the tasks and what needs no generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from ...data.vectors import Vectors
from ...results.tasks import TaskGroup, TaskResults
from ..outputs import EvaluatorOutput
from ..population import choose_inputs
from .diversity import SeenFunctions, disagreement, ensemble_accuracies
from .networks import TaskNetworks, task_pairs
from .regressions import Predict, choose_regressions, nearest_seen, residual_draws
from .summary import summarize
from .ways import WAYS, WITHOUT_GENERATOR
from .weights import Make, mean_of_nearest, mean_of_seen, task_arithmetic, weighted_means

# Logits of all networks of a way that are kept, so that they are computed once.
LOGITS_BYTES = 2**28

# From conditions (K, C) and targets (K, d) of a seed, regressions of which the best on validation tasks is taken.
Fit = Callable[[torch.Tensor, torch.Tensor, int], Iterable[Predict]]


@dataclass(frozen=True)
class LatentSpace:
    """The latents of a run's autoencoder: networks `(n, D)` ↔ scaled latents `(n, d)`."""

    encode: Callable[[Vectors], torch.Tensor]
    decode: Callable[[torch.Tensor], torch.Tensor]


def evaluate_unseen_tasks(
    seen: TaskNetworks,
    validation: TaskNetworks,
    unseen: TaskNetworks,
    generated: Vectors,
    space: LatentSpace | None = None,
    *,
    further: Mapping[str, Vectors] | None = None,
    accuracies: Mapping[str, torch.Tensor] | None = None,
    merges: Mapping[str, Iterable[Make]] | None = None,
    fit: Fit | None = None,
    seconds: Mapping[str, float] | None = None,
    known: TaskResults | None = None,
    seed: int = 0,
) -> TaskResults:
    """Judge networks that are made for unseen tasks, each by the labels of its own task.

    What a way leaves open, such as the penalty of a regression, is the best on validation tasks.

    Args:
        seen ([`TaskNetworks`]): Networks that generators were trained on.
        validation ([`TaskNetworks`]): Networks of other tasks, judged on validation examples.
        unseen ([`TaskNetworks`]): Trained networks of the unseen tasks, judged on test examples.
        generated (`Vectors` of shape `(T · n, D)`): As many for every unseen task, in the order of the tasks.
        space ([`LatentSpace`], *optional*): For ways in the generator's latents; none by default.
        further (`Mapping[str, Vectors]`, *optional*): Other networks as `generated`, by their way.
        accuracies (`Mapping[str, torch.Tensor]`, *optional*): Of ways that are no networks of the layout, `(T,)`.
        merges (`Mapping[str, Iterable[Callable]]`, *optional*): From conditions `(T, C)` to networks `(T, D)`, by
            their way, of which the best on validation tasks is taken.
        fit (`Callable`, *optional*): Makes the perceptrons; without it there are none.
        seconds (`Mapping[str, float]`, *optional*): What one network of a way takes.
        known ([`TaskResults`], *optional*): Of another generator of the same collection: what does not depend on it is
            taken of these.
        seed (`int`, *optional*, defaults to 0): Of draws around a regression and of random subsets.

    Returns:
        [`TaskResults`]: with all means, intervals and differences.
    """
    return _Protocol(seen, validation, unseen, seed).run(
        generated, space, further or {}, accuracies or {}, merges or {}, fit, seconds or {}, known
    )


class _Protocol:
    def __init__(self, seen: TaskNetworks, validation: TaskNetworks, unseen: TaskNetworks, seed: int):
        self._seen, self._validation, self._unseen, self._seed = seen, validation, unseen, seed
        self._distinct = unseen.distinct
        self._groups: dict[str, TaskGroup] = {}
        # Ensembles of draws and of trained networks are of one size, where a task has several of these.
        trained = int(torch.bincount(unseen.rows).min())
        self._ensemble_size = trained if trained > 1 else None
        evaluator = unseen.evaluator
        num = max(len(seen.vectors), len(unseen.vectors))
        self._inputs = choose_inputs(evaluator.num_examples, evaluator.num_classes, num, seed)
        functions = unseen.predict(unseen.vectors, unseen.rows, keep=self._inputs)
        # Whose labels they are judged by does not matter here.
        anything = torch.zeros(len(seen.vectors), dtype=torch.int64)
        self._functions = SeenFunctions(unseen.predict(seen.vectors, anything, keep=self._inputs), functions, seed)

    def run(
        self,
        generated: Vectors,
        space: LatentSpace | None,
        further: Mapping[str, Vectors],
        accuracies: Mapping[str, torch.Tensor],
        merges: Mapping[str, Iterable[Make]],
        fit: Fit | None,
        seconds: Mapping[str, float],
        known: TaskResults | None,
    ) -> TaskResults:
        unseen = self._unseen
        draws = len(generated) // len(unseen)
        self._add_several("generated", generated)
        for name, networks in further.items():
            self._add_several(name, networks)
        if known is None:
            self._add_without_generator(accuracies, merges, fit)
        else:
            alike = {name: group for name, group in known.unseen.items() if group.role in WITHOUT_GENERATOR}
            self._groups |= {name: group.model_copy() for name, group in alike.items()}
        if space is not None:
            self._add_latents(space, draws, fit)
        trained = self._groups["oracle"].disagreement
        for name, group in self._groups.items():
            group.seconds = seconds.get(name, group.seconds)
            if group.disagreement is not None and trained:
                group.diversity_ratio = group.disagreement / trained
        ordered = {name: self._groups[name] for name in WAYS if name in self._groups}
        results = TaskResults(
            num_seen=len(self._seen),
            num_validation=len(self._validation),
            num_unseen=len(unseen),
            draws=draws,
            names=list(unseen.names),
            sizes=self._distinct.sum(1).int().tolist(),
            pairs=task_pairs(self._distinct).tolist(),
            unseen=ordered | {name: group for name, group in self._groups.items() if name not in ordered},
        )
        return summarize(results)

    def _add_without_generator(
        self, accuracies: Mapping[str, torch.Tensor], merges: Mapping[str, Iterable[Make]], fit: Fit | None
    ) -> None:
        self._add_trained()
        for name, values in {"majority": self._unseen.majority, **accuracies}.items():
            self._add(name, values)
        self._add_nearest()
        for name, make in self._of_weights(fit):
            self._add_several(name, make(self._distinct))
        for name, made in merges.items():
            self._add_several(name, self._best(made)(self._distinct))

    def _add(self, name: str, accuracies: torch.Tensor) -> TaskGroup:
        description, role = WAYS.get(name, (None, None))
        known = {"description": description, "role": role, "accuracies": accuracies.tolist()}
        group = self._groups[name] = TaskGroup(**known)
        return group

    def _add_several(self, name: str, networks: Vectors) -> None:
        """A way that has as many networks for every task, one task after another."""
        unseen = self._unseen
        each = len(networks) // len(unseen)
        if each == 1:
            self._add(name, unseen.predict(networks).accuracy)
            return
        output, logits = self._predict(networks)
        group = self._add(name, output.accuracy.view(len(unseen), each).double().mean(1))
        self._add_diversity(group, output.predictions.unflatten(0, (-1, each)), networks, each, logits)
        for key, value in self._functions.measure(output).items():
            setattr(group, key, value)

    def _predict(
        self, networks: Vectors, tasks: torch.Tensor | None = None
    ) -> tuple[EvaluatorOutput, torch.Tensor | None]:
        """What networks do, with the logits that are compared, and all logits `(n, N, classes)` where they fit."""
        evaluator = self._unseen.evaluator
        shape = len(networks), evaluator.num_examples, evaluator.num_classes
        if 4 * math.prod(shape) > LOGITS_BYTES:
            return self._unseen.predict(networks, tasks, keep=self._inputs), None
        output = self._unseen.predict(networks, tasks, keep=torch.arange(evaluator.num_examples))
        return replace(output, logits=output.logits[:, self._inputs]), output.logits

    def _add_diversity(
        self,
        group: TaskGroup,
        predictions: torch.Tensor,
        networks: Vectors,
        each: int,
        kept: torch.Tensor | None,
    ) -> None:
        unseen = self._unseen
        group.disagreement = disagreement(predictions, unseen.evaluator.num_classes)
        answers = []
        # Logits of a task's networks at a time: of all tasks there may be no room for them.
        size = min(each, self._ensemble_size or each)
        for task in range(len(unseen)):
            rows = slice(task * each, task * each + size)
            if kept is None:
                logits = torch.cat([own for _, own in unseen.evaluator.logits(networks[rows])]).cpu()
            else:
                logits = kept[rows]
            answers.append(ensemble_accuracies(logits[None], unseen.evaluator.targets[task : task + 1].cpu()))
        group.ensembles, group.ensemble_size = torch.cat(answers).tolist(), size

    def _add_trained(self) -> None:
        """Networks trained on the tasks."""
        unseen = self._unseen
        output, logits = self._predict(unseen.vectors, unseen.rows)
        group = self._add("oracle", unseen.mean_by_task(output.accuracy, unseen.rows))
        for key, value in self._functions.measure(output, is_trained=True).items():
            setattr(group, key, value)
        each = int(torch.bincount(unseen.rows).min())
        if each < 2:
            return
        rows = torch.cat([(unseen.rows == task).nonzero()[:each, 0] for task in range(len(unseen))])
        predictions = output.predictions[rows].unflatten(0, (-1, each))
        kept = None if logits is None else logits[rows]
        self._add_diversity(group, predictions, unseen.vectors[rows], each, kept)

    def _add_nearest(self) -> None:
        seen, unseen = self._seen, self._unseen
        rows = nearest_seen(seen.conditions, self._distinct)
        tasks = torch.cat([torch.full_like(own, task) for task, own in enumerate(rows)])
        accuracies = unseen.mean_by_task(unseen.predict(seen.vectors[torch.cat(rows)], tasks).accuracy, tasks)
        self._add("nearest", accuracies)
        distances = torch.cdist(self._distinct, seen.conditions, p=1)
        if bool((distances.amin(1) == 1).all()):
            self._add("hamming_1", accuracies)
        # A task and its complement are the same with flipped labels.
        complements = [(distance == seen.conditions.shape[1]).nonzero()[:, 0] for distance in distances]
        if all(len(own) for own in complements):
            tasks = torch.cat([torch.full_like(own, task) for task, own in enumerate(complements)])
            found = unseen.predict(seen.vectors[torch.cat(complements)], tasks).accuracy
            self._add("complement_flipped", 1 - unseen.mean_by_task(found, tasks))

    def _of_weights(self, fit: Fit | None) -> Iterator[tuple[str, Make]]:
        seen = self._seen
        yield "mean_seen", mean_of_seen(seen)
        yield "nearest_mean", mean_of_nearest(seen)
        yield "weighted_mean", self._best(weighted_means(seen))
        yield "task_arithmetic", self._best(task_arithmetic(seen))
        vectors = seen.vectors[:]
        for name, predict in choose_regressions(seen.conditions, vectors, self._worth(lambda found: found)):
            yield f"{name}_weights", predict
        if fit is not None:
            yield "perceptron_weights", self._best(fit(seen.conditions, vectors, self._seed))

    def _add_latents(self, space: LatentSpace, draws: int, fit: Fit | None) -> None:
        seen, unseen = self._seen, self._unseen
        written = space.decode(space.encode(unseen.vectors))
        accuracies = unseen.predict(written, unseen.rows).accuracy
        self._add("reconstructed", unseen.mean_by_task(accuracies, unseen.rows))
        latents = space.encode(seen.vectors)
        worth = self._worth(space.decode)
        found = dict(choose_regressions(seen.conditions, latents, worth))
        for name, predict in found.items():
            self._add_several(f"{name}_latents", space.decode(predict(self._distinct)))
        best = max(found.values(), key=worth)
        wanted = self._distinct.repeat_interleave(draws, 0)
        drawn = residual_draws(best, seen.conditions, latents, wanted, self._seed)
        self._add_several("gaussian_ridge_latents", space.decode(drawn))
        if fit is not None:
            predict = self._best(fit(seen.conditions, latents, self._seed), space.decode)
            self._add_several("perceptron_latents", space.decode(predict(self._distinct)))

    def _best(
        self, made: Iterable[Predict], decode: Callable[[torch.Tensor], torch.Tensor] = lambda networks: networks
    ) -> Predict:
        return max(made, key=self._worth(decode))

    def _worth(self, decode: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Predict], float]:
        """The mean accuracy of what a way makes for the validation tasks."""
        validation = self._validation
        wanted = validation.distinct
        return lambda predict: validation.predict(decode(predict(wanted))).accuracy.mean().item()
