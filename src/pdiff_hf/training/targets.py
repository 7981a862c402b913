"""What a decoder of functions is to write: functions of networks seen, and functions that no network has.

A decoder that is trained on the functions of the networks seen gives those back and little between them. Functions
that no network has can be evaluated all the same, from the networks' outputs. Of one population, combinations with
normal weights have mean and covariance of the networks' functions, and they are what will be drawn. Of networks of
many tasks, analogies have tasks that none of them has.
"""

from __future__ import annotations

import torch

from ..models.autoencoder_functional import AutoencoderFunctional
from ..models.function_encoder import FunctionEncoder
from ..models.functions import analogies
from ..models.kinds import AutoencoderFunctionalConfig
from ..models.normalizer import ParameterNormalizer
from ..wording import setting
from .batches import GlobalBatch, upload

# Of the loss of functions, the share of the cross-entropy to the target's probabilities.
CROSS_ENTROPY = 0.3
# Combinations are as near to a network as networks are to each other, up to this factor: else they are none.
MAX_NEAR = 1.25
# Draws that say how near combinations are; fewer neighbours are not combined.
NUM_DRAWS, MIN_NEIGHBOURS = 256, 8


def chosen_targets(config: AutoencoderFunctionalConfig, of_tasks: bool) -> str:
    """What `targets` of a config are: `auto` are analogies of networks of several tasks (`of_tasks`), whose functions
    are learned, those seen where labels alone are, and combinations of others, as many as are one population.

    Raises:
        ValueError: labels are to be learned of combinations of networks of several tasks, which have none.
    """
    if not of_tasks:
        return config.targets
    if config.targets == "combinations" and config.task_loss:
        raise ValueError(
            f"expected {setting('autoencoder.targets', 'analogies')} or seen with a task_loss for networks of several "
            "tasks, found combinations, which have no labels."
        )
    if config.targets == "auto":
        return "analogies" if config.function_loss else "seen"
    return config.targets


def make_targets(
    autoencoder: AutoencoderFunctional, functions: torch.Tensor, config: AutoencoderFunctionalConfig, of_tasks: bool
) -> Combinations | Analogies:
    """The targets of `config` for networks with `functions` `(K, P, classes)` on the probes of `autoencoder`.

    Raises:
        ValueError: as [`chosen_targets`].
    """
    targets = chosen_targets(config, of_tasks)
    if targets == "analogies":
        return Analogies(autoencoder.encoder, functions)
    return Combinations(autoencoder.encoder, functions, targets, config.latent_noise)


class Combinations:
    """Targets f = Σ aᵢ fᵢ, Σ aᵢ = 1, with the latents Σ aᵢ zᵢ: networks seen, or combinations of n neighbours.

    `f̄ + Σ wᵢ (fᵢ - f̄)` with w ~ N(0, 1 / (n - 1)), or the network of the row alone with noise on its latents.

    Args:
        encoder ([`FunctionEncoder`]): Fitted.
        functions (`torch.Tensor` of shape `(K, P, classes)`): Of the training networks on its probes.
        targets (`str`), latent_noise (`float`): See [`choose_neighbours`] and [`AutoencoderFunctionalConfig`].
    """

    def __init__(self, encoder: FunctionEncoder, functions: torch.Tensor, targets: str, latent_noise: float):
        self._encoder, self._noise, self.device = encoder, latent_noise, functions.device
        self.network_latents = encoder(functions)
        values = encoder.values(functions).flatten(1)
        self.num_combined = choose_neighbours(values, targets)
        self._neighbours = nearest(values, self.num_combined)
        self._host_neighbours = self._neighbours.cpu()
        self.combines_all = self.num_combined == len(values)
        self.num_drawn = 2 if self.num_combined == 0 else 1

    def draw(self, batch: GlobalBatch) -> list[torch.Tensor]:
        """Weights `(B, K)` of the networks in each target, of sum 1; of networks seen, noise `(B, k)`, too."""
        weights = torch.zeros(len(batch.indices), len(self.network_latents), device=self.device)
        if self.num_combined == 0:
            (rows,) = upload([batch.indices], self.device)
            return [weights.scatter_(1, rows[:, None], 1.0), batch.normal(self.network_latents.shape[1])]
        rows, noise = upload([batch.indices, batch.normal(self.num_combined)], self.device)
        return [weights.scatter_(1, self._neighbours[rows], normal_weights(noise))]

    def latents(self, weights: torch.Tensor, *noise: torch.Tensor) -> torch.Tensor:
        """Latents `(B, k)` of the targets."""
        latents = weights @ self.network_latents
        return latents + self._noise * noise[0] if noise else latents

    def distance(self, own: torch.Tensor, functions: torch.Tensor, weights: torch.Tensor, *_: torch.Tensor):
        """Loss of functions `(B, n, classes)` of which the networks' are `(n, K, classes)`.

        Squared error in units of the functions' variance, and cross-entropy to the target's probabilities.
        """
        target = (weights @ functions).transpose(0, 1)
        cross_entropy = -(self._probabilities(target) * own.log_softmax(-1)).sum(-1).mean()
        distance = (self._encoder.values(own) - target).square().mean() / self._encoder.scale.square()
        return distance + CROSS_ENTROPY * cross_entropy

    def is_network(self, *drawn: torch.Tensor) -> torch.Tensor | None:
        """`None`: labels, where there are any, are all targets'."""
        return None

    def parameters(
        self, vectors: torch.Tensor, normalizer: ParameterNormalizer, batch: GlobalBatch, weights: torch.Tensor
    ) -> torch.Tensor:
        """Normalised parameters `(B, D)` of the combinations of networks `(K, D)`."""
        used = batch.indices if self.num_combined == 0 else self._host_neighbours[batch.indices]
        used = used.unique()
        (here,) = upload([used], self.device)
        rows = vectors[used if vectors.device.type == "cpu" else here]
        return weights[:, here] @ normalizer.normalize(*upload([rows], self.device))

    @torch.no_grad()
    def draw_latents(self, num: int, seed: int) -> torch.Tensor:
        """Latents `(num, k)` of combinations of all networks, from the Gaussian of their latents."""
        size = len(self.network_latents)
        noise = torch.randn(num, size, generator=torch.Generator().manual_seed(seed)).to(self.device)
        return normal_weights(noise) @ self.network_latents

    def _probabilities(self, target: torch.Tensor) -> torch.Tensor:
        return target.clamp_min(0) if self._encoder.probabilities else target.softmax(-1)


class Analogies:
    """Targets of networks of several tasks: every second a network seen, the others [`analogies`] of three.

    Args:
        encoder ([`FunctionEncoder`]): Fitted, of probabilities.
        functions (`torch.Tensor` of shape `(K, P, classes)`): Of the training networks on its probes.
    """

    num_combined, num_drawn, combines_all = 3, 1, False

    def __init__(self, encoder: FunctionEncoder, functions: torch.Tensor):
        self._encoder, self._values, self.device = encoder, encoder.values(functions), functions.device

    def draw(self, batch: GlobalBatch) -> list[torch.Tensor]:
        """The three networks `(B, 3)` of each target, of those seen three times the same."""
        rows, num = batch.indices, len(self._values)
        others = torch.stack([batch.integers(num), batch.integers(num)], 1).to(rows.device)
        is_network = torch.arange(batch.own.start, batch.own.stop) % 2 == 0
        others = torch.where(is_network[:, None], rows[:, None], others)
        return list(upload([torch.cat([rows[:, None], others], 1)], self.device))

    def latents(self, rows: torch.Tensor) -> torch.Tensor:
        """Latents `(B, k)` of the targets: what they compute is known on the probes as anywhere."""
        return self._encoder.scores(analogies(self._values, rows))

    def distance(self, own: torch.Tensor, functions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of functions `(B, n, classes)` to targets of networks of `(n, K, classes)`."""
        target = analogies(functions, rows, 1).transpose(0, 1)
        return -(target * own.log_softmax(-1)).sum(-1).mean()

    def is_network(self, rows: torch.Tensor) -> torch.Tensor:
        """Which targets `(B,)` are networks seen: they alone have labels, and parameters."""
        return (rows[:, 1] == rows[:, 2]).float()

    def parameters(
        self, vectors: torch.Tensor, normalizer: ParameterNormalizer, batch: GlobalBatch, rows: torch.Tensor
    ) -> torch.Tensor:
        """Normalised parameters `(B, D)` of the first network of each target."""
        index = batch.indices if vectors.device.type == "cpu" else rows[:, 0]
        return normalizer.normalize(*upload([vectors[index]], self.device))


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
