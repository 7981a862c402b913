"""Groups of networks as populations: what their networks compute, beside originals that were held out.

Accuracy, diversity and ensembles cannot tell a generator from one that gives its training networks back: the networks
seen have all three. So every group is asked as well how near its networks are, as functions, to those seen. A function
is what a network computes on test examples, its logits without their mean over the classes, which softmax does not
see; networks whose hidden units are in another order are the same.

All of this takes rows for independent, so held-out originals have to be of other runs than those seen.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..data.vectors import split_rows
from ..results.population import FIT_MARGIN, Population, PopulationIntervals
from ..results.records import Difference
from .autocorrelation import RunMemory
from .intervals import accuracy_difference, exact_interval, sample_mean_interval
from .outputs import EvaluatorOutput
from .similarity import squared_distances, wrong_iou
from .two_sample import function_tests
from .verdict import population_finding

# With fewer there are no two to compare.
MIN_SEEN, MIN_HELD_OUT = 2, 2
# Memory of the logits of all networks.
MAX_LOGITS_BYTES = 2**29
# Random halves of equally many networks seen and not seen.
NUM_SUBSAMPLES = 20
# Pairs are those of so many networks at most.
MAX_PAIRED = 200
NUM_BOOTSTRAPS, NUM_MEDIANS = 999, 199
ROUNDING = 1e-6
QUANTILES = torch.tensor([0.025, 0.975], dtype=torch.float64)


def unseen_runs(memory: RunMemory, holdout_every: int | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Rows seen and rows held out, where all of the latter are independent of all of the former; `None` elsewhere.

    Args:
        memory ([`RunMemory`]): Of all rows, in the order of the dataset.
        holdout_every (`int`, *optional*): Every how manyth row was not seen, see [`split_rows`].
    """
    if holdout_every is None:
        return None
    seen, held_out = split_rows(len(memory), holdout_every)
    unknown = memory.times.isnan() & (torch.bincount(memory.runs, minlength=len(memory.times)) > 1)
    if len(seen) < MIN_SEEN or len(held_out) < MIN_HELD_OUT or unknown.any():
        return None
    return None if memory.dependent()[held_out][:, seen].any() else (seen, held_out)


def choose_inputs(num_examples: int, num_classes: int, num_networks: int, seed: int = 0) -> torch.Tensor:
    """The test examples `(I,)` on which functions are compared, in ascending order; as many as there is memory for."""
    most = max(1, MAX_LOGITS_BYTES // (4 * num_classes * num_networks))
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(num_examples, generator=generator)[:most].sort().values


def measure_populations(
    outputs: Mapping[str, EvaluatorOutput],
    seen: torch.Tensor,
    held_out: torch.Tensor,
    targets: torch.Tensor,
    inputs: torch.Tensor,
    names: tuple[str, ...] = (),
    seed: int = 0,
) -> dict[str, Population]:
    """Compare groups with held-out originals. Measures of novelty as in the docs, evaluation.md.

    Args:
        outputs (`Mapping[str, EvaluatorOutput]`): On the test examples, with logits, by group; `original` are all rows
            of the dataset, and what is made of originals has to be made of those seen.
        seen, held_out (`torch.Tensor` of shapes `(S,)`, `(H,)`): Rows of `original`, at least 2 of both, independent
            of each other.
        targets (`torch.Tensor` of shape `(P, N)`): Labels of every population.
        inputs (`torch.Tensor` of shape `(I,)`): The examples of which the logits are.
        names (`tuple[str, ...]`, *optional*): Of the populations; none where there is one.
        seed (`int`, *optional*, defaults to 0): Of all that is drawn.

    Returns:
        `dict[str, Population]`: `original`, the held-out ones, `seen`, `seen_redrawn`, as many draws with replacement
        from these as there are generated networks, and all other groups.
    """
    all_originals = outputs["original"]
    originals, known = all_originals.take(held_out), all_originals.take(seen)
    num = len(outputs.get("generated", originals))
    generator = torch.Generator().manual_seed(seed)
    redrawn = known.take(torch.randint(len(seen), (num,), generator=generator))
    groups = {"original": originals, "seen": known, "seen_redrawn": redrawn}
    groups |= {name: output for name, output in outputs.items() if name != "original"}

    beside = _Beside(originals, known, targets.cpu(), inputs, min(num, len(originals)), seed)
    found = {name: beside.measure(group, name, names) for name, group in groups.items()}
    for name in found.keys() - {"original"}:
        found[name].finding = population_finding(found[name])
    return found


def centred(output: EvaluatorOutput) -> torch.Tensor:
    """Functions `(n, I · classes)`: logits without their mean over the classes, in units of their root mean square."""
    logits = output.logits - output.logits.mean(-1, keepdim=True)
    return logits.flatten(1) / logits[0].numel() ** 0.5


def pair_disagreement(predictions: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Shares `(n, n)` of examples on which two networks, by their predictions `(n, N)`, say different things.

    Of two networks, examples count by the `weights` `(n, N)` of the first one.
    """
    predictions = predictions.int()
    rows = zip(predictions, weights, strict=True)
    return torch.stack([(predictions != own).float() @ weight / len(weight) for own, weight in rows]).double()


class _Beside:
    """Held-out originals and networks seen, which groups are compared with."""

    def __init__(
        self,
        originals: EvaluatorOutput,
        seen: EvaluatorOutput,
        targets: torch.Tensor,
        inputs: torch.Tensor,
        ensemble_size: int,
        seed: int,
    ):
        self._originals, self._seen = originals, seen
        self._targets, self._inputs, self._size, self._seed = targets, inputs, ensemble_size, seed
        self._functions, self._functions_seen = centred(originals), centred(seen)
        self._apart = _distances(self._functions, self._functions_seen).amin(1)
        self._among = _distances(self._functions, self._functions).fill_diagonal_(torch.inf)
        self._ensemble = self._average(originals)
        self._pairs = self._of_pairs(originals, torch.Generator().manual_seed(seed))
        # Of every population, the worst of its held-out originals; where there is none, of all.
        worst = torch.full((len(targets),), originals.accuracy.min().item())
        for own in originals.population.unique():
            worst[own] = originals.accuracy[originals.population == own].min()
        self._worst = worst

    def measure(self, group: EvaluatorOutput, name: str, names: tuple[str, ...]) -> Population:
        """What is known of a group of networks."""
        is_original = name == "original"
        generator = torch.Generator().manual_seed(self._seed)
        n, functions = len(group), self._functions if is_original else centred(group)
        to_seen = _distances(functions, self._functions_seen)
        to_unseen = self._among if is_original else _distances(functions, self._functions)
        nearest, which = to_seen.min(1)
        copies = nearest < self._apart.min() / 2
        fits = group.accuracy >= self._worst[group.population] - FIT_MARGIN - ROUNDING
        side, side_interval = nearest_side(to_seen, to_unseen, generator, is_original)
        intervals = PopulationIntervals(
            near=_divided(sample_mean_interval(nearest), self._apart.mean().item()),
            side=side_interval,
            copies=exact_interval(copies.sum().item(), n),
            fit_share=exact_interval(fits.sum().item(), n),
        )
        found = Population(
            accuracy=group.accuracy.double().mean().item(),
            accuracy_min=group.accuracy.min().item(),
            near=_finite(nearest.mean() / self._apart.mean()),
            side=side,
            copies=copies.double().mean().item(),
            agreement=(group.predictions == self._seen.predictions[which]).double().mean().item(),
            fit_share=fits.double().mean().item(),
            shares={
                name: (fits & (group.population == index)).double().mean().item() for index, name in enumerate(names)
            }
            or None,
            n=n,
            num_inputs=len(self._inputs),
            ci95=intervals,
        )
        if not is_original:
            found.accuracy_difference = Difference(**accuracy_difference(group.scores, self._originals.scores))
        if n > 1:
            self._add_pairs(found, group, is_original, generator)
            right, right_originals = self._average(group), self._ensemble
            found.ensemble, found.ensemble_size = right.mean().item(), min(n, self._size)
            if not is_original:
                found.ensemble_difference = Difference(**accuracy_difference(right[None], right_originals[None]))
        if n > 1 and not is_original:
            m = min(n, len(self._functions))
            within = _distances(functions[:m], functions[:m])
            among = self._among[:m, :m].clone().fill_diagonal_(0)
            tests = function_tests(within, to_unseen[:m, :m], among, generator)
            found.two_sample_accuracy, found.two_sample_p, found.mmd_p = tests
        return found

    def _add_pairs(
        self, found: Population, group: EvaluatorOutput, is_original: bool, generator: torch.Generator
    ) -> None:
        own = self._pairs if is_original else self._of_pairs(group, generator)
        for key in ("iou", "disagreement"):
            (value, resamples), (reference, resampled) = own[key], self._pairs[key]
            setattr(found, key, _finite(value))
            setattr(found.ci95, key, _interval(resamples))
            if not is_original:
                setattr(found, f"{key}_ratio", _finite(value / reference))
                setattr(found.ci95, f"{key}_ratio", _interval(resamples / resampled))

    def _of_pairs(self, group: EvaluatorOutput, generator: torch.Generator) -> dict:
        """Means over pairs of one population, and those of bootstraps over the networks."""
        group = group.take(torch.arange(min(len(group), MAX_PAIRED)))
        together = (group.population[:, None] == group.population).fill_diagonal_(False).double()
        drawn = torch.randint(len(group), (NUM_BOOTSTRAPS, len(group)), generator=generator)
        weights = torch.zeros(NUM_BOOTSTRAPS, len(group), dtype=torch.float64)
        weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        iou = wrong_iou(group.wrong, group.wrong).double()
        found = {}
        for key, values in (
            ("iou", iou),
            ("disagreement", pair_disagreement(group.predictions, group.weights[group.population])),
        ):
            resamples = ((weights @ (values * together)) * weights).sum(1)
            resamples = resamples / ((weights @ together) * weights).sum(1)
            found[key] = ((values * together).sum() / together.sum(), resamples)
        return found

    def _average(self, group: EvaluatorOutput) -> torch.Tensor:
        """Whether averaged probabilities are right on the inputs `(I,)`, averaged over populations by their size."""
        group = group.take(torch.arange(min(len(group), self._size)))
        right = torch.zeros(len(self._inputs), dtype=torch.float64)
        for own in group.population.unique():
            members = group.logits[group.population == own]
            answers = sum(logits.double().softmax(-1) for logits in members).argmax(-1)
            labels = self._targets[own, self._inputs]
            weights = (labels >= 0).double() / (labels >= 0).double().mean().clamp(min=1 / len(labels))
            right += len(members) / len(group) * weights * (answers == labels)
        return right


def nearest_side(
    to_seen: torch.Tensor, to_unseen: torch.Tensor, generator: torch.Generator, exclude_self: bool = False
) -> tuple[float | None, list[float] | None]:
    """Median of the distance to the nearest network seen over that to the nearest not seen, equally many of both.

    Of the larger set, as many as the smaller one has are drawn, again and again, and the ratios of all draws count
    together: those of networks whose nearest of all is among those drawn or in the smaller set. Without a preference
    these are as often seen as not. Others say nothing: of 500 networks seen, 100 hold what was copied in a fifth of
    the draws only.

    Args:
        to_seen, to_unseen (`torch.Tensor` of shapes `(n, S)`, `(n, H)`): Distances.
        generator (`torch.Generator`): Of what is drawn.
        exclude_self (`bool`, *optional*, defaults to `False`): The networks are those not seen: none is a neighbour of
            itself, and one less of those seen is drawn.

    Returns the median and its bootstrap interval (95 %, over the networks); `None` where it does not exist.
    """
    num = min(to_seen.shape[1], to_unseen.shape[1] - int(exclude_self))
    nearest = torch.minimum(to_seen.amin(1), to_unseen.amin(1))
    draws = _nearest_of(to_seen, num, generator), _nearest_of(to_unseen, num + int(exclude_self), generator)
    ratios = []
    for seen, unseen in zip(*draws, strict=True):
        is_concerned = (seen == nearest) | (unseen == nearest)
        ratios.append(torch.where(is_concerned, seen / unseen, torch.nan))
    ratios = torch.stack(ratios, 1).double()
    rows = torch.randint(len(ratios), (NUM_MEDIANS, len(ratios)), generator=generator)
    medians = torch.stack([ratios[own].flatten().nanquantile(0.5) for own in rows])
    return _finite(ratios.flatten().nanquantile(0.5)), _interval(medians) if len(ratios) > 1 else None


def _nearest_of(distances: torch.Tensor, num: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Distances `(n,)` to the nearest of `num` networks, for `NUM_SUBSAMPLES` random draws of these out of all."""
    draws: list[torch.Tensor] = []
    while len(draws) < NUM_SUBSAMPLES:
        order = torch.randperm(distances.shape[1], generator=generator)
        # Disjoint ones, so that all networks take their turn.
        draws += [rows for rows in order.split(num) if len(rows) == num]
    return [distances[:, rows].amin(1) for rows in draws[:NUM_SUBSAMPLES]]


def _distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Distances `(A, B)` of functions; infinite of those that are not finite."""
    return squared_distances(a, b).clamp(min=0).sqrt().nan_to_num(torch.inf, posinf=torch.inf)


def _finite(value: torch.Tensor) -> float | None:
    return value.item() if value.isfinite() else None


def _divided(interval: list[float] | None, by: float) -> list[float] | None:
    return None if interval is None or by == 0 else [end / by for end in interval]


def _interval(resamples: torch.Tensor) -> list[float] | None:
    """The middle 95 % of the resamples that exist."""
    resamples = resamples[resamples.isfinite()]
    return resamples.quantile(QUANTILES).tolist() if len(resamples) else None
