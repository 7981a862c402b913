"""The best denoiser of Gaussian latents, in closed form."""

from __future__ import annotations

import math

import torch
from diffusers import SchedulerMixin

from .config import PREDICTION_TYPES, too_few_rows
from .precision import Float32Module, without_autocast


class LatentGaussian(Float32Module):
    r"""A Gaussian of latents `(C, L)` and its denoiser, a Wiener filter at every timestep.

    For latents from N(m, Σ), Σ = V diag(λ) Vᵀ, and noisy ones x = √ᾱ z + √(1-ᾱ) ε, the expectation of z given x is
    m + V diag(√ᾱ λ / (ᾱ λ + 1 - ᾱ)) Vᵀ (x - √ᾱ m); those of ε and of the velocity √ᾱ ε - √(1-ᾱ) z follow from it. No
    denoiser has a smaller loss on such latents. Source: Wiener 1949; for diffusion, Wang and Vastola 2024, arXiv
    2412.09726.

    All of it are buffers, float32 whatever the model is cast to.

    Args:
        latent_shape (`tuple[int, int]`): C and L.
        num_train_timesteps (`int`): Timesteps T of the noise schedule.
        prediction_type (`str`): What is predicted: `epsilon`, `v_prediction` or `sample`.
    """

    def __init__(self, latent_shape: tuple[int, int], num_train_timesteps: int, prediction_type: str):
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type must be one of {PREDICTION_TYPES}, got {prediction_type!r}.")
        self.latent_shape, self.prediction_type = tuple(latent_shape), prediction_type
        num_values = math.prod(latent_shape)
        self.register_buffer("mean", torch.zeros(num_values))
        self.register_buffer("variances", torch.ones(num_values))
        self.register_buffer("basis", torch.eye(num_values))
        self.register_buffer("log_snr", torch.zeros(num_train_timesteps))

    @torch.no_grad()
    def fit(self, latents: torch.Tensor) -> None:
        """Take over mean and covariance of scaled latents `(K, C, L)`.

        Raises:
            ValueError: there are not more latents than values of each, or they do not vary.
        """
        rows, size = latents.flatten(1).cpu().double(), len(self.mean)
        if len(rows) <= size:
            raise ValueError(too_few_rows(size, len(rows)))
        if not rows.isfinite().all() or (rows == rows[0]).all():
            found = "they are all the same" if rows.isfinite().all() else "some are not finite"
            raise ValueError(f"the latents must be finite and vary, found that {found}.")
        self.mean.copy_(rows.mean(0))
        self.set_covariance(torch.cov(rows.T).reshape(size, size))

    @torch.no_grad()
    def set_covariance(self, covariance: torch.Tensor) -> None:
        """Take over Σ `(C·L, C·L)`, float64."""
        variances, basis = torch.linalg.eigh(covariance)
        self.variances.copy_(variances.clamp_min(0))
        self.basis.copy_(basis)

    @torch.no_grad()
    def set_schedule(self, scheduler: SchedulerMixin) -> None:
        """Take over the noise schedule of the scheduler of training, as log(ᾱ / (1 - ᾱ)) of every timestep."""
        self.log_snr.copy_(torch.logit(scheduler.alphas_cumprod.double(), eps=1e-12))

    def check_schedule(self, scheduler: SchedulerMixin) -> None:
        """Raise `ValueError` for a scheduler of another noise schedule or prediction than those of training."""
        alphas = getattr(scheduler, "alphas_cumprod", None)
        own = self.log_snr.sigmoid().cpu()
        advice = "take the one of training, or one made of its config"
        if alphas is not None and (alphas.shape != own.shape or not torch.allclose(alphas.cpu(), own, rtol=1e-4)):
            raise ValueError(f"{type(scheduler).__name__} has another noise schedule than the denoiser; {advice}.")
        if (kind := scheduler.config.get("prediction_type")) != self.prediction_type:
            raise ValueError(
                f"{type(scheduler).__name__} expects prediction_type={kind!r}, the denoiser predicts "
                f"{self.prediction_type!r}; {advice}."
            )

    def sample(self, num: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw scaled latents `(num, C, L)`; the generator is the CPU's."""
        noise = torch.randn(num, len(self.variances), generator=generator).to(self.mean.device)
        return (self.mean + (noise * self.variances.sqrt()) @ self.basis.T).unflatten(1, self.latent_shape)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, mean: torch.Tensor | None = None) -> torch.Tensor:
        """Predict from noisy latents `(B, C, L)` at timesteps `(B,)`, which may lie between two of training.

        Rows may have means of their own, `mean` `(B, C·L)`.
        """
        mean = self.mean if mean is None else mean
        shape, x, log_snr = x.shape, x.float().flatten(1), self._log_snr(timestep)[:, None]
        alpha, rest = log_snr.sigmoid(), (-log_snr).sigmoid()
        signal, sigma = alpha.sqrt(), rest.sqrt()
        total = torch.addcmul(rest, alpha, self.variances)
        gain = {"epsilon": sigma, "v_prediction": signal * sigma, "sample": signal}[self.prediction_type] / total
        if self.prediction_type != "epsilon":
            gain = gain * (1 - self.variances if self.prediction_type == "v_prediction" else self.variances)
        with without_autocast(x.device):
            found = ((torch.addcmul(x, signal, mean, value=-1) @ self.basis) * gain) @ self.basis.T
        if self.prediction_type == "v_prediction":
            found = torch.addcmul(found, sigma, mean, value=-1)
        elif self.prediction_type == "sample":
            found = found + mean
        return found.view(shape)

    def _log_snr(self, timestep: torch.Tensor) -> torch.Tensor:
        """Interpolated as solvers do that ask between the timesteps of training."""
        last = len(self.log_snr) - 1
        if not timestep.is_floating_point():
            return self.log_snr[timestep.clamp(0, last)]
        position = timestep.to(self.log_snr).clamp(0, last)
        below = position.floor().long()
        return torch.lerp(self.log_snr[below], self.log_snr[(below + 1).clamp_max(last)], position - below)
