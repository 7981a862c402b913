"""From what a network computes to its latents: principal components of outputs on stored inputs."""

from __future__ import annotations

import math

import torch

from ..wording import setting
from .precision import Float32Module, without_autocast

# Functions whose standard deviation over the networks is a smaller part of their values than this are one function.
SAME_FUNCTION = 1e-5


class FunctionEncoder(Float32Module):
    """Principal components of the functions of networks on probe inputs; scores have variance 1 along each of them.

    Functions are logits less their mean, or probabilities, so the scores do not change when hidden units change
    places: networks of independent runs need no alignment. Scores are linear in these values, so those of a
    combination are the combination of the scores.

    All of it are buffers, float32 whatever the model is cast to; probes that are token ids stay int64.

    Args:
        num_components (`int`): Scores k of a network.
        probe_shape (`tuple[int, ...]`): Of the probe inputs, `(P, C, H, W)` or `(P, L)` for token ids.
        num_outputs (`int`): Classes.
        token_ids (`bool`, *optional*, defaults to `False`): Whether probes are texts.
        probabilities (`bool`, *optional*, defaults to `False`): Compare probabilities in place of logits.
    """

    def __init__(
        self,
        num_components: int,
        probe_shape: tuple[int, ...],
        num_outputs: int,
        token_ids: bool = False,
        probabilities: bool = False,
    ):
        super().__init__()
        self.probabilities = probabilities
        size = probe_shape[0] * num_outputs
        dtype = torch.int64 if token_ids else torch.float32
        self.register_buffer("probes", torch.zeros(probe_shape, dtype=dtype))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.zeros(num_components, size))
        self.register_buffer("deviations", torch.ones(num_components))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, values: torch.Tensor) -> None:
        """Take over the components of values `(K, P, classes)` on the probes, in float64 by their Gram matrix.

        Raises:
            ValueError: they are no more than the components, some are not finite, or they are one function.
        """
        num = len(self.deviations)
        rows = values.flatten(1).double()
        if len(rows) <= num:
            raise ValueError(f"{num} latent values need at least {num + 1} training checkpoints, got {len(rows)}.")
        if not rows.isfinite().all():
            index = int((~rows.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"expected finite outputs on the probe inputs, found others of training row {index}.")
        mean = rows.mean(0)
        deviations = rows - mean
        if deviations.square().mean().sqrt() <= SAME_FUNCTION * rows.square().mean().sqrt():
            raise ValueError(
                f"expected networks that compute different functions, found that the {len(rows)} training rows give "
                "the same outputs on all probe inputs; collect independent runs, or take another kind of autoencoder."
            )
        variances, vectors = torch.linalg.eigh(deviations @ deviations.T)
        variances, vectors = variances.flip(0)[:num], vectors.flip(1)[:, :num]
        if (rank := int((variances > variances[0] * len(rows) * torch.finfo(rows.dtype).eps).sum())) < num:
            raise ValueError(
                f"expected functions that span {num} latent values, found {rank}; take no more of them "
                f"({setting('autoencoder.latent_channels')})."
            )
        self.mean.copy_(mean)
        self.basis.copy_((vectors.T @ deviations) / variances.sqrt()[:, None])
        self.deviations.copy_((variances / (len(rows) - 1)).sqrt())
        self.scale.copy_(rows.std())

    def values(self, functions: torch.Tensor) -> torch.Tensor:
        """What is compared of functions `(…, classes)`: themselves, or their probabilities."""
        return functions.softmax(-1) if self.probabilities else functions

    def scores(self, values: torch.Tensor) -> torch.Tensor:
        """Scores `(B, k)` of [`~FunctionEncoder.values`] `(B, P, classes)` on the probes."""
        with without_autocast(values.device):
            return (values.float().flatten(1) - self.mean) @ self.basis.T / self.deviations

    def forward(self, functions: torch.Tensor) -> torch.Tensor:
        """Scores `(B, k)` of functions `(B, P, classes)` on the probes."""
        return self.scores(self.values(functions))


def explained_shares(functions: torch.Tensor) -> torch.Tensor:
    """Shares `(K - 1,)` of the variance of functions `(K, P, classes)` along their principal components, falling."""
    deviations = functions.flatten(1).double()
    deviations = deviations - deviations.mean(0)
    values = torch.linalg.eigvalsh(deviations @ deviations.T).flip(0)[: max(1, len(functions) - 1)].clamp_min(0)
    return values / values.sum().clamp_min(math.ulp(0.0))
