"""What the decoder of a functional autoencoder is trained on: functions to be written, and the loss of what it writes.

A decoder that is trained on the functions of the networks seen gives those back and little between them. Functions
that no network has can be evaluated all the same: a combination of the networks' outputs. With normal weights, such
combinations have mean and covariance of the networks' functions, and they are what will be drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn

from ..data.dataset import ParameterDataset
from ..evaluation.evaluator import ParameterEvaluator
from ..models.autoencoder_functional import AutoencoderFunctional
from ..models.functions import NetworkFunctions
from ..models.kinds import AutoencoderFunctionalConfig
from ..models.normalizer import BLOCK_VALUES
from ..wording import setting
from .batches import GlobalBatch, upload

# Of the loss of functions, the share of the cross-entropy to the target's probabilities.
CROSS_ENTROPY = 0.3
# Inputs that each of those of a step is chosen among, at most.
CANDIDATES = 4
# Inputs on which all networks agree are drawn by this share of the mean.
LEAST_TELLING = 0.01
# Combinations are as near to a network as networks are to each other, up to this factor: else they are none.
MAX_NEAR = 1.25
# Draws that say how near combinations are; fewer neighbours are not combined.
NUM_DRAWS, MIN_NEIGHBOURS = 256, 8


class Probes(Protocol):
    """Where inputs come from: see `pdiff_hf.tasks.probes.ProbeSource`."""

    class_labels: torch.Tensor | None

    def draw(self, num: int, seed: int) -> torch.Tensor:
        """Inputs `(num, …)` on which networks differ."""

    def labelled(self, num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Training examples `(num, …)` and their labels `(num,)`."""


def check_functional_inputs(
    dataset: ParameterDataset, evaluator: ParameterEvaluator | None, probes: Probes | None
) -> nn.Module:
    """The base network of a dataset whose networks are to be compared by what they compute.

    Raises:
        ValueError: the dataset names no base model or no task, so that nothing can be computed.
    """
    if dataset.base_model is None or evaluator is None or probes is None:
        missing = "base model" if dataset.base_model is None else "task"
        raise ValueError(
            f"expected a {missing} in {dataset.folder}, without which nobody knows what its networks compute, found "
            f"none; import or collect it with one, or take {setting('autoencoder.kind', 'pdiff')}."
        )
    return dataset.base_model.build()


class FunctionObjective:
    """The loss of a decoder on targets: functions of networks seen, or combinations of them.

    In a step, each network of the batch gets a target f = Σ aᵢ fᵢ, Σ aᵢ = 1, and the latents Σ aᵢ zᵢ: the function of
    one network (with noise on the latents), or of its n neighbours, `f̄ + Σ wᵢ (fᵢ - f̄)` with w ~ N(0, 1 / (n - 1)).
    The decoder's network is compared with it on inputs that are drawn from a pool by how much the networks differ
    there: squared error of the functions, in units of their variance, and cross-entropy to the target's probabilities.

    Args:
        autoencoder ([`AutoencoderFunctional`]): Fitted.
        functions (`torch.Tensor` of shape `(K, P, classes)`): Of the training networks on its probes.
        vectors (`torch.Tensor` of shape `(K, D)`): Their raw parameters, a tensor or [`StoredVectors`].
        model (`nn.Module`): The base network.
        probes ([`Probes`]): Where inputs come from.
        config ([`AutoencoderFunctionalConfig`]): Hyper-parameters.
        class_labels (`torch.Tensor` of shape `(K, classes)`, *optional*): The label of every class in the task of
            every training network, where there are several tasks.

    Raises:
        ValueError: labels are to be learned of combinations of networks of several tasks, which have none.
    """

    def __init__(
        self,
        autoencoder: AutoencoderFunctional,
        functions: torch.Tensor,
        vectors: torch.Tensor,
        model: nn.Module,
        probes: Probes,
        config: AutoencoderFunctionalConfig,
        class_labels: torch.Tensor | None = None,
    ):
        self.config, self.probes, self.vectors, self.class_labels = config, probes, vectors, class_labels
        self.device, self.normalizer = autoencoder.device, autoencoder.normalizer
        self.variance = autoencoder.encoder.scale.square()
        self.latents = autoencoder.encoder(functions)
        of_tasks = class_labels is not None and bool(config.task_loss)
        if of_tasks and config.targets == "combinations":
            raise ValueError(
                f"expected {setting('autoencoder.targets', 'seen')} with a task_loss for networks of several tasks, "
                "found combinations, which have no labels."
            )
        targets = "seen" if of_tasks else config.targets
        self.num_neighbours = choose_neighbours(functions.flatten(1), targets)
        self.neighbours = nearest(functions.flatten(1), self.num_neighbours)
        self._host_neighbours = self.neighbours.cpu()
        example = probes.draw(config.inputs_per_step, config.seed)
        self.functions = NetworkFunctions(model, autoencoder.layout, example, self.device)
        self.num_activations = len(self.functions.prefix(example))
        self._pool: tuple[int, FunctionPool] | None = None

    def describe(self) -> dict[str, int]:
        """What is written beside the gate: of how many networks a target is combined, 0 for those seen alone."""
        return {"combined_networks": self.num_neighbours}

    def draw(self, batch: GlobalBatch) -> Sequence[torch.Tensor]:
        """What one process's share of a batch needs: combinations, noise, inputs of the pool and what is due on them.

        They are of the same shapes in every step, whatever pool it is; see [`FunctionObjective.loss`] for the order.
        """
        config, pool, generator = self.config, self._pool_of(batch.step), batch.shared_generator()
        weights = self._combine(batch)
        drawn = [weights]
        if self.num_neighbours == 0:
            drawn.append(batch.normal(self.latents.shape[1]))
        if config.function_loss:
            activations, functions = pool.draw(config.inputs_per_step, generator)
            drawn += [functions, *activations]
        if config.task_loss:
            activations, labels = pool.draw_labelled(config.inputs_per_step, generator)
            labels = labels.expand(len(batch.indices), -1)
            if self.class_labels is not None:
                (own,) = upload([self.class_labels[batch.indices]], self.device)
                labels = own.gather(1, labels)
            drawn += [labels, *activations]
        if config.weight_loss:
            drawn.append(self._parameters(weights, batch))
        return drawn

    def loss(self, model: nn.Module, *drawn: torch.Tensor) -> torch.Tensor:
        """The loss of one process's share of a batch, for what [`FunctionObjective.draw`] has drawn."""
        config, given = self.config, iter(drawn)
        weights = next(given)
        latents = weights @ self.latents
        if self.num_neighbours == 0:
            latents = latents + config.latent_noise * next(given)
        written = model(latents)
        vectors = self.normalizer.denormalize(written)
        loss = written.new_zeros(())
        if config.function_loss:
            functions, activations = next(given), tuple(itertools.islice(given, self.num_activations))
            own = self.functions(vectors, activations)
            target = (weights @ functions).transpose(0, 1)
            distance = (own - target).square().mean() / self.variance
            cross_entropy = -(target.softmax(-1) * own.log_softmax(-1)).sum(-1).mean()
            loss = loss + config.function_loss * (distance + CROSS_ENTROPY * cross_entropy)
        if config.task_loss:
            labels, activations = next(given), tuple(itertools.islice(given, self.num_activations))
            own = self.functions(vectors, activations).flatten(0, 1)
            loss = loss + config.task_loss * nn.functional.cross_entropy(own, labels.flatten())
        if config.weight_loss:
            loss = loss + config.weight_loss * nn.functional.mse_loss(written, next(given))
        return loss

    @property
    def combines_all(self) -> bool:
        """Whether targets are combinations of all networks, which then are one population."""
        return self.num_neighbours == len(self.latents)

    @torch.no_grad()
    def draw_latents(self, num: int, seed: int) -> torch.Tensor:
        """Latents `(num, C·L)` of combinations of all networks, from the Gaussian of their latents."""
        noise = torch.randn(num, len(self.latents), generator=torch.Generator().manual_seed(seed)).to(self.device)
        return normal_weights(noise) @ self.latents

    def _combine(self, batch: GlobalBatch) -> torch.Tensor:
        """Weights `(B, K)` of the networks in each target; every row sums to 1."""
        weights = torch.zeros(len(batch.indices), len(self.latents), device=self.device)
        if self.num_neighbours == 0:
            (rows,) = upload([batch.indices], self.device)
            return weights.scatter_(1, rows[:, None], 1.0)
        rows, noise = upload([batch.indices, batch.normal(self.num_neighbours)], self.device)
        return weights.scatter_(1, self.neighbours[rows], normal_weights(noise))

    def _parameters(self, weights: torch.Tensor, batch: GlobalBatch) -> torch.Tensor:
        """Normalised parameters `(B, D)` of combinations of networks."""
        used = batch.indices if self.num_neighbours == 0 else self._host_neighbours[batch.indices]
        used = used.unique()
        (here,) = upload([used], self.device)
        vectors = self.vectors[used if self.vectors.device.type == "cpu" else here]
        return weights[:, here] @ self.normalizer.normalize(*upload([vectors], self.device))

    def _pool_of(self, step: int) -> FunctionPool:
        period = step // self.config.pool_steps
        if self._pool is None or self._pool[0] != period:
            self._pool = None
            seed = int(np.random.SeedSequence([self.config.seed, period, 1]).generate_state(1)[0])
            self._pool = (period, FunctionPool(self.functions, self.vectors, self.probes, self.config, seed))
        return self._pool[1]


class FunctionPool:
    """Inputs with what all networks compute on them, from which those of some steps are drawn.

    How likely an input is drawn is the variance of the networks' probabilities on it: where all agree, there is
    nothing to tell them apart by.

    Args:
        functions ([`NetworkFunctions`]): Of the base network.
        vectors (`torch.Tensor` of shape `(K, D)`): Of the networks.
        probes ([`Probes`]): Where inputs come from.
        config ([`AutoencoderFunctionalConfig`]): How many inputs, and how much memory they may take.
        seed (`int`): Of the inputs.
    """

    def __init__(
        self,
        functions: NetworkFunctions,
        vectors: torch.Tensor,
        probes: Probes,
        config: AutoencoderFunctionalConfig,
        seed: int,
    ):
        size = functions.batch_size
        first = functions.prefix(probes.draw(size, seed))
        bytes_per_input = 4 * len(vectors) * functions.num_outputs + sum(part.nbytes for part in first) / size
        num = int(min(config.pool_size, config.max_pool_mb * 2**20 // bytes_per_input)) // size * size
        if num < size:
            raise ValueError(
                f"expected memory for the outputs of {len(vectors)} networks on inputs_per_step={size} inputs, found "
                f"max_pool_mb={config.max_pool_mb}; give "
                f"{setting('autoencoder.max_pool_mb', str(-(-int(size * bytes_per_input) // 2**20)))} or more, or "
                f"fewer inputs ({setting('autoencoder.inputs_per_step')})."
            )
        self._labelled = None
        if config.task_loss:
            inputs, labels = probes.labelled(num, seed)
            self._labelled = (self._activations(functions, inputs), labels.to(functions.device))
        if config.function_loss:
            inputs = probes.draw(num, seed)
            self._inputs = self._activations(functions, inputs)
            rows = max(1, BLOCK_VALUES // functions.layout.num_parameters)
            starts = range(0, len(vectors), rows)
            # By inputs, so that those of a step are read in few pieces.
            self._functions = torch.empty(num, len(vectors), functions.num_outputs, device=functions.device)
            for start in starts:
                part = functions.of(vectors[start : start + rows], inputs)
                self._functions[:, start : start + rows] = part.transpose(0, 1)
            telling = torch.cat([part.softmax(-1).var(1).sum(-1) for part in self._functions.split(size)])
            self._telling = (telling + telling.mean() * LEAST_TELLING).cpu()

    @staticmethod
    def _activations(functions: NetworkFunctions, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = [functions.prefix(part) for part in inputs.split(functions.batch_size)]
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    def draw(self, num: int, generator: torch.Generator) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Activations of `num` inputs, and the functions `(num, K, classes)` on them."""
        candidates = torch.randperm(len(self._telling), generator=generator)[: CANDIDATES * num]
        index = candidates[self._telling[candidates].multinomial(num, generator=generator)]
        (index,) = upload([index], self._functions.device)
        return tuple(part[index] for part in self._inputs), self._functions[index]

    def draw_labelled(self, num: int, generator: torch.Generator) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Activations of `num` training examples, and their labels `(num,)`."""
        activations, labels = self._labelled
        (index,) = upload([torch.randperm(len(labels), generator=generator)[:num]], labels.device)
        return tuple(part[index] for part in activations), labels[index]


def normal_weights(noise: torch.Tensor) -> torch.Tensor:
    """Weights `(B, n)` that sum to 1, of standard normal `noise` `(B, n)`.

    Combinations of n rows by them are draws of the Gaussian with the rows' mean and covariance.
    """
    num = noise.shape[1]
    deviations = noise / (num - 1) ** 0.5
    return deviations - deviations.mean(1, keepdim=True) + 1 / num


def choose_neighbours(functions: torch.Tensor, targets: str) -> int:
    """Of how many networks targets are combined, 0 for none: all where they are one population, else as many as are.

    Combinations of all networks of several populations would be no functions of any. Their distance to the nearest
    network tells: that of combinations of n neighbours may be so much larger than that between networks, on average,
    `MAX_NEAR`; n is the largest of K, K / 2, K / 4, … for which it is not.

    Args:
        functions (`torch.Tensor` of shape `(K, d)`): Of the networks on probe inputs.
        targets (`str`): `"seen"` for none, `"combinations"` for all, or `"auto"`.
    """
    num = len(functions)
    if targets != "auto":
        return {"seen": 0, "combinations": num}[targets]
    rows = functions.double()
    rows = rows - rows.mean(0)
    gram = rows @ rows.T
    squares = gram.diagonal()
    between = (squares[:, None] + squares - 2 * gram).clamp_min(0).sqrt().fill_diagonal_(torch.inf).amin(1).mean()
    generator = torch.Generator().manual_seed(0)
    centres = torch.randint(num, (NUM_DRAWS,), generator=generator).to(rows.device)
    size = num
    while size >= MIN_NEIGHBOURS:
        drawn = normal_weights(torch.randn(NUM_DRAWS, size, generator=generator, dtype=torch.float64)).to(rows.device)
        weights = rows.new_zeros(NUM_DRAWS, num).scatter_(1, nearest(functions, size)[centres], drawn)
        products = weights @ gram
        distances = ((products * weights).sum(1)[:, None] + squares - 2 * products).clamp_min(0).sqrt().amin(1)
        if distances.mean() <= MAX_NEAR * between:
            return size
        size //= 2
    return 0


def nearest(functions: torch.Tensor, num: int) -> torch.Tensor:
    """The `num` nearest networks `(K, num)` of each, itself among them, by functions `(K, d)`."""
    return torch.cdist(functions, functions).topk(num, largest=False).indices
