"""Table of the groups of networks that a report compares: how each is made, and its part in the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from ..data.vectors import Vectors
from ..layout import ParameterLayout
from .baselines import (
    averages,
    gaussian,
    greedy_soup,
    interpolations,
    noised_originals,
    pca_gaussian,
    swag,
    uniform_soup,
)
from .group_inputs import GroupInputs
from .merging.checkpoints import dare, model_stock, slerp, task_arithmetic, ties

Place = Literal["points", "latents", "matrix", "histogram", "ensembles"]
# Where single networks are seen: as points, in latent space, and in the matrix of shared mistakes.
SINGLY: tuple[Place, ...] = ("points", "latents", "matrix")
EVERYWHERE: tuple[Place, ...] = (*SINGLY, "histogram", "ensembles")


@dataclass(frozen=True)
class Group:
    """An entry of [`GROUPS`].

    Args:
        make (`Callable`, *optional*): Makes the networks `(n, D)` out of [`GroupInputs`]; without it, the networks are
            handed in.
        role (`str`, *optional*, defaults to `"baseline"`): What it is to the generator: `original` and `generated`
            are themselves; an `average` of originals, or another `rival`, has to be beaten and is always in view; a
            `generated_average` is made of generated networks.
        description (`str`, *optional*): What its networks are, as a part of a sentence.
        color (`str`, *optional*, defaults to `"ink"`): Name in the palette of the plots: averages are green, noise
            purple, fitted distributions orange.
        marker (`str`, *optional*, defaults to `"8"`): Matplotlib's, another one for every group.
        shown (`tuple[str, ...]`, *optional*): Plots that it is in beside that of all groups: `points` of single
            networks, `latents`, the `matrix` of shared mistakes, `histogram`, `ensembles`.
        label (`str`, *optional*): Its name as people read it; that in the table, without underscores, by default.
        made_of_single_originals (`bool`, *optional*, defaults to `False`): Its networks are single originals that
            were changed, and depend on each other as these do.
        counterpart (`str`, *optional*): Of a `generated_average`, the same average of originals.
        needs (`tuple[str, ...]`, *optional*): What is not in all [`GroupInputs`], and without which there is no such
            group.
        is_single (`bool`, *optional*, defaults to `False`): It is made as one network, others as `num`.
    """

    make: Callable[[GroupInputs], Vectors] | None = None
    role: Literal["original", "generated", "average", "rival", "generated_average", "baseline"] = "baseline"
    description: str = ""
    color: str = "ink"
    marker: str = "8"
    shown: tuple[Place, ...] = ()
    label: str | None = None
    made_of_single_originals: bool = False
    counterpart: str | None = None
    needs: tuple[str, ...] = ()
    is_single: bool = False


def _draws(function: Callable, **options) -> Callable[[GroupInputs], Vectors]:
    """What makes draws of originals by a layout."""
    return lambda given: function(given.originals, given.layout, given.num, given.generator, **options)


def _mixtures(function: Callable) -> Callable[[GroupInputs], Vectors]:
    """What mixes originals without knowing their layout."""
    return lambda given: function(given.originals, given.num, given.generator)


# fmt: off
# By name, in the order of the report.
GROUPS: dict[str, Group] = {
    "original": Group(None, "original", "originals", "blue", "o", EVERYWHERE),
    "reconstructed": Group(
        None, "baseline", "originals through the autoencoder", "grey", "s", made_of_single_originals=True
    ),
    "generated": Group(None, "generated", "generated networks", "vermillion", "D", EVERYWHERE),
    "generated_uniform_soup": Group(
        lambda given: uniform_soup(given.generated),
        "generated_average", "the uniform soup of generated networks", "vermillion", "$U$", counterpart="uniform_soup",
        is_single=True,
    ),
    "generated_greedy_soup": Group(
        lambda given: greedy_soup(given.generated, given.val_worth),
        "generated_average", "the greedy soup of generated networks", "vermillion", "$G$", counterpart="greedy_soup",
        needs=("val_worth",), is_single=True,
    ),
    "uniform_soup": Group(
        lambda given: uniform_soup(given.originals),
        "average", "the uniform soup of all originals", "green", "*", is_single=True,
    ),
    "greedy_soup": Group(
        lambda given: greedy_soup(given.originals, given.val_worth),
        "average", "the greedy soup of originals", "green", "P", needs=("val_worth",), is_single=True,
    ),
    "average_16": Group(
        _mixtures(averages), "average", "averages of 16 originals", "green", "^", (*SINGLY, "histogram")
    ),
    "noise_0.05": Group(
        _draws(noised_originals, sigma=0.05), "baseline", "originals with 5 % noise", "purple", "v",
        made_of_single_originals=True,
    ),
    "noise_0.1": Group(
        _draws(noised_originals, sigma=0.1), "baseline", "originals with 10 % noise", "purple", "X",
        made_of_single_originals=True,
    ),
    "gaussian": Group(_draws(gaussian), "baseline", "a Gaussian for every coordinate", "orange", "h"),
    "pca_gaussian": Group(_draws(pca_gaussian), "baseline", "the Gaussian of all weights", "orange", "p"),
    "gaussian_latents": Group(
        lambda given: given.draw_latents(given.num, given.generator),
        "baseline", "the Gaussian of the denoiser's latents", "orange", "$L$", needs=("draw_latents",),
    ),
    "noise_latents": Group(
        lambda given: given.noise_latents(given.num, given.generator),
        "baseline", "noise around the latents of originals", "purple", "$N$", made_of_single_originals=True,
        needs=("noise_latents",),
    ),
    "noise_one": Group(
        lambda given: noised_originals(given.originals[:1], given.layout, given.num, given.generator, sigma=0.05),
        "baseline", "one original with 5 % noise", "purple", "$1$", needs=("is_zoo",),
    ),
    "matched_soup": Group(
        lambda given: uniform_soup(given.aligned),
        "average", "the uniform soup of all originals after weight matching", "green", "$M$", needs=("aligned",),
        is_single=True,
    ),
    "matched_gaussian": Group(
        lambda given: pca_gaussian(given.aligned, given.layout, given.num, given.generator),
        "baseline", "the Gaussian of all weights after weight matching", "orange", "$m$", needs=("aligned",),
    ),
    "swag": Group(_draws(swag), "baseline", "SWAG's Gaussian", "orange", "d", ("histogram", "ensembles")),
    "interpolation": Group(_mixtures(interpolations), "baseline", "points between two originals", "sky", "<"),
    "slerp": Group(
        _draws(slerp),
        "baseline", "points on the arc between two originals", "sky", "$Q$", needs=("plain",),
    ),
    "task_arithmetic": Group(
        lambda given: given.choose(task_arithmetic(given.task_vectors, given.val_worth)),
        "average", "the sum of all task vectors", "green", "$V$", needs=("plain", "start", "val_worth"),
        is_single=True,
    ),
    "ties": Group(
        lambda given: given.choose(ties(given.task_vectors, given.val_worth)),
        "average", "the TIES merge of all originals", "green", "$T$", needs=("plain", "has_peft", "val_worth"),
        label="TIES", is_single=True,
    ),
    "dare": Group(
        lambda given: given.choose(dare(given.task_vectors, given.val_worth, given.generator)),
        "average", "the DARE merge of all originals", "green", "$D$", needs=("plain", "has_peft", "val_worth"),
        label="DARE", is_single=True,
    ),
    "model_stock": Group(
        lambda given: model_stock(given.task_vectors),
        "average", "the model stock of all originals", "green", "$K$", needs=("plain", "start"), is_single=True,
    ),
    # Of adapters, by `merging.adapters`; the exact mean has another rank, and is beside the groups.
    "mean_delta_svd": Group(
        None, "average", "the mean of what all adapters add, at their rank", "green", "$B$", is_single=True
    ),
    "mean_factors": Group(None, "average", "the mean of all adapters' factors", "green", "$F$", is_single=True),
    "peft_linear": Group(None, "average", "peft's linear merge of all adapters", "green", "$l$", is_single=True),
    "peft_ties": Group(None, "average", "peft's TIES merge of all adapters", "green", "$t$", is_single=True),
    "peft_ties_svd": Group(
        None, "average", "peft's TIES merge of what all adapters add", "green", "$v$", is_single=True
    ),
    "peft_dare_linear": Group(None, "average", "peft's DARE merge of all adapters", "green", "$d$", is_single=True),
    "peft_magnitude_prune": Group(
        None, "average", "peft's merge of all adapters' largest values", "green", "$p$", is_single=True
    ),
    "fine_tuned": Group(None, "rival", "fine-tuning for the same time", "ink", ">", ("histogram",)),
    "pdiff": Group(
        None, "rival", "p-diff as published (AutoencoderPDiff)", "ink", "$P$", ("histogram",), "p-diff"
    ),
    "pdiff_aligned": Group(
        None, "rival", "p-diff as published, after weight matching", "ink", "$A$", ("histogram",), "p-diff aligned"
    ),
    "unseen": Group(None, "baseline", "checkpoints that the generator was not given", "ink", "H"),
    # Of populations alone: all originals of a zoo are among the originals.
    "seen": Group(None, "baseline", "the training networks themselves", "blue", "$S$"),
    "seen_redrawn": Group(None, "baseline", "draws of the training networks with replacement", "blue", "$R$"),
}
# fmt: on


def find_group(name: str) -> Group:
    """The entry of a group; that of a baseline of no special part for a name that is not in [`GROUPS`]."""
    return GROUPS.get(name, Group())


def is_shown(name: str, place: Place) -> bool:
    """Whether a group is in a plot that does not show all of them."""
    return place in find_group(name).shown


def label(name: str) -> str:
    """A group's name as people read it."""
    return find_group(name).label or name.replace("_", " ")


def describe_group(name: str) -> dict[str, str]:
    """What `metrics.json` says of a group beside its numbers."""
    group = find_group(name)
    return {"role": group.role, "label": label(name), "description": group.description, "color": group.color}


def count_independent(
    sizes: Mapping[str, int], spreads: Mapping[str, float | None], known: Mapping[str, float]
) -> dict[str, float]:
    """How many independent networks those of every group count as, in intervals over networks.

    As many as is `known` of a group. Single originals, through the autoencoder or with noise,
    have two parts of variance about the originals' mean: that of the originals, which counts as they do, and what was
    drawn anew for each. With s² their variance in units of the originals', `s² / n_effective` is
    `1 / n_originals + (s² - 1) / n`. Others are, given the originals, independent draws, and count fully.

    Args:
        sizes (`Mapping[str, int]`): Networks of every group.
        spreads (`Mapping[str, float]`): Their `spread`, s.
        known (`Mapping[str, float]`): What is known, by group.
    """
    counts = {name: float(size) for name, size in sizes.items()} | dict(known)
    for name in sizes.keys() - known.keys():
        if find_group(name).made_of_single_originals:
            variance = max(1.0, (spreads[name] or 1.0) ** 2)
            of_originals = 1 / min(counts["original"], sizes[name])
            counts[name] = variance / (of_originals + (variance - 1) / sizes[name])
    return counts


class Groups(Mapping[str, Vectors]):
    """Networks `(n, D)` by group name, in the order of the report.

    Baselines are made when they are asked for, anew every time: of large networks there is no room for those of all
    groups at once. Each starts from the seed, so that the same networks come out, and adding one changes no other.

    Args:
        originals, generated, layout, inputs: See [`GroupInputs`]; baselines get as many draws as there are generated
            networks.
        reconstructed (`Vectors` of shape `(R, D)`, *optional*): Originals that went through the autoencoder.
        seed (`int`, *optional*, defaults to 0): Of every baseline.
        before (`Mapping[str, float | None]`, *optional*): Seconds that what a baseline is made of has cost, `None`
            where nobody knows.

    Attributes:
        seconds (`dict[str, float]`): What the networks of a group took, those of baselines once they are made.
        chosen (`dict[str, dict]`): What was chosen for a baseline on the validation examples, once it is made.
    """

    def __init__(
        self,
        originals: Vectors,
        generated: Vectors,
        layout: ParameterLayout,
        reconstructed: Vectors | None = None,
        seed: int = 0,
        before: Mapping[str, float | None] | None = None,
        **inputs: Any,
    ):
        given = {"original": originals, "reconstructed": reconstructed, "generated": generated}
        self._given = {name: vectors for name, vectors in given.items() if vectors is not None}
        self._seed, self._before = seed, before or {}
        generator = torch.Generator()
        self._inputs = GroupInputs(originals, generated, layout, len(generated), generator, **inputs)
        made = [name for name, group in GROUPS.items() if group.make and {*group.needs} <= self._inputs.known]
        self._names = [*self._given, *made]
        self.seconds: dict[str, float] = {}
        self.chosen: dict[str, dict[str, Any]] = {}

    def give(self, name: str, networks: Vectors) -> None:
        """Add the networks of another group, or put them in the place of those that are there."""
        self._given[name] = networks
        self._names = list(dict.fromkeys([*self._names, name]))

    def __getitem__(self, name: str) -> Vectors:
        if name in self._given:
            return self._given[name]
        if name not in self._names:
            raise KeyError(name)
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(self._seed)
        inputs = replace(self._inputs, generator=generator, chosen={})
        networks = GROUPS[name].make(inputs)
        if inputs.chosen:
            self.chosen[name] = inputs.chosen
        if (before := self._before.get(name, 0.0)) is not None:
            self.seconds.setdefault(name, before + time.perf_counter() - start)
        return networks

    def __contains__(self, name: object) -> bool:
        # Without making it.
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def num_networks(self) -> int:
        """Of all groups together."""
        made = [GROUPS[name] for name in self._names if name not in self._given]
        return sum(map(len, self._given.values())) + sum(1 if g.is_single else self._inputs.num for g in made)


def build_groups(
    originals: Vectors,
    generated: Vectors,
    layout: ParameterLayout,
    reconstructed: Vectors | None = None,
    val_worth: Callable[[Vectors], torch.Tensor] | None = None,
    seed: int = 0,
    draw_latents: Callable[[int, torch.Generator], Vectors] | None = None,
    **inputs: Any,
) -> tuple[dict[str, Vectors], dict[str, float]]:
    """Make all of [`Groups`] at once, of networks that have room in memory; arguments are its.

    Returns:
        `tuple[dict[str, Vectors], dict[str, float]]`: networks by group name, `original`, `reconstructed` (if given),
        `generated` and every baseline; and the seconds that making each baseline took.
    """
    inputs |= {"val_worth": val_worth, "draw_latents": draw_latents}
    groups = Groups(originals, generated, layout, reconstructed, seed, **inputs)
    return dict(groups), groups.seconds
