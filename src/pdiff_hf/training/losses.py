"""Losses of denoisers: what they are trained on, and how those of several are compared on rows that were not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDPMScheduler, ModelMixin
from diffusers.training_utils import compute_snr

from ..evaluation.intervals import sample_mean_interval
from ..models.gaussian import LatentGaussian

# Timesteps, evenly spaced, at which a held-out loss is taken, and noisy latents that a denoiser is given at once.
NUM_TIMESTEPS = 100
BATCH = 4096

# Noisy latents (B, C, L) and timesteps (B,) → predictions (B, C, L).
Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def denoising_target(
    clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, scheduler: DDPMScheduler
) -> torch.Tensor:
    """What is to be predicted of clean latents with noise `(B, C, L)`, by the scheduler's `prediction_type`."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(clean, noise, timesteps)
    return noise if scheduler.config.prediction_type == "epsilon" else clean


def min_snr_weights(timesteps: torch.Tensor, scheduler: DDPMScheduler, gamma: float) -> torch.Tensor:
    """Weights `(B,)` of the losses at timesteps `(B,)`: those of clean latents weighted by min(SNR, gamma).

    Source: Hang et al. 2023, arXiv 2303.09556, §3.4.
    """
    snr = compute_snr(scheduler, timesteps)
    of_clean = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    return snr.clamp_max(gamma) / of_clean[scheduler.config.prediction_type]


class TrainingTargets:
    """Noisy latents of a training step, what is to be predicted of them, and the loss of a prediction.

    The stable target is the expectation of [`denoising_target`] over all training rows that may have become the noisy
    latents: those of the same condition where the denoiser is told it. With the same minimiser as the target of the
    one row that did, it has a smaller variance: training takes fewer steps. Source: Xu et al. 2023, arXiv 2302.00670,
    with all rows as the reference batch.

    Factors that depend on the timestep alone are looked up in one table: an accelerator computes latents in less time
    than it takes to be told of another operation.

    Args:
        rows (`torch.Tensor` of shape `(K, C, L)`): Scaled latents of the training rows.
        scheduler ([`DDPMScheduler`]): Noise schedule, and what is predicted.
        latent_noise (`float`): Standard deviation of the noise that training adds to the rows.
        stable (`bool`): Whether targets are the stable ones.
        snr_gamma (`float`, *optional*): Of [`min_snr_weights`]; without it, all timesteps count alike.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        scheduler: DDPMScheduler,
        latent_noise: float,
        stable: bool,
        snr_gamma: float | None = None,
    ):
        self._rows, self._stable, self._is_weighted = rows.flatten(1), stable, snr_gamma is not None
        alpha = scheduler.alphas_cumprod.double()
        signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
        # The target is a sum of noise and clean latents with these factors.
        one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
        kinds = {"epsilon": (one, zero), "v_prediction": (signal, -sigma), "sample": (zero, one)}
        of_noise, of_clean = kinds[scheduler.config.prediction_type]
        if stable:
            # Of rows that are likely by exp(sharpness · distance²), the mean e; clean latents are on average
            # e + share · (x - signal · e), and the noise is what is left of x.
            spread = alpha * latent_noise**2 + 1 - alpha
            sharpness, share = -alpha / (2 * spread), signal * latent_noise**2 / spread
            of_clean = of_clean - of_noise * signal / sigma
            of_noisy, of_mean = of_noise / sigma + of_clean * share, of_clean * (1 - share * signal)
            factors = [1 / signal, sharpness, of_noisy, of_mean]
        else:
            factors = [of_noise, of_clean]
        weights = one
        if snr_gamma is not None:
            weights = min_snr_weights(torch.arange(len(alpha)), scheduler, snr_gamma).double()
        table = torch.stack([signal, sigma, weights, *factors], 1)
        self._table = table.float().to(rows.device)

    def __call__(
        self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, others: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noisy latents `(B, C, L)`, targets `(B, C, L)` and weights `(B,)` of clean latents, noise and timesteps.

        `others` `(B, K)` are rows that cannot have become the noisy latents, because their condition is another one.
        """
        shape, clean, noise = clean.shape, clean.flatten(1), noise.flatten(1)
        signal, sigma, weights, *factors = self._table[timesteps][:, None].unbind(2)
        noisy = torch.addcmul(signal * clean, sigma, noise)
        if self._stable:
            rescale, sharpness, of_noisy, of_mean = factors
            # Differences, as products would cancel where there is little noise.
            distances = torch.cdist(noisy * rescale, self._rows, compute_mode="donot_use_mm_for_euclid_dist")
            likelihood = distances.square() * sharpness
            if others is not None:
                likelihood = likelihood.masked_fill(others, -torch.inf)
            mean = likelihood.softmax(1) @ self._rows
            target = torch.addcmul(of_mean * mean, of_noisy, noisy)
        else:
            of_noise, of_clean = factors
            target = torch.addcmul(of_clean * clean, of_noise, noise)
        return noisy.view(shape), target.view(shape), weights[:, 0]

    def loss(self, predicted: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Mean squared error of predictions `(B, C, L)`, weighted."""
        if not self._is_weighted:
            return torch.nn.functional.mse_loss(predicted, target)
        return (weights * (predicted - target).square().flatten(1).mean(1)).mean()


@torch.no_grad()
def denoising_losses(
    denoiser: Denoiser, rows: torch.Tensor, scheduler: DDPMScheduler, num_timesteps: int = NUM_TIMESTEPS
) -> torch.Tensor:
    """Mean squared errors `(K,)` of a denoiser on latents `(K, C, L)`, over evenly spaced timesteps.

    The noise is the same in every call, so that denoisers are compared on equal terms.
    """
    last = scheduler.config.num_train_timesteps - 1
    steps = torch.linspace(0, last, min(num_timesteps, last + 1)).long().unique()
    generator, total = torch.Generator().manual_seed(0), torch.zeros(len(rows), dtype=torch.float64)
    for part in steps.split(max(1, BATCH // len(rows))):
        noise = torch.randn(len(part), *rows.shape, generator=generator).to(rows).flatten(0, 1)
        timesteps = part.repeat_interleave(len(rows)).to(rows.device)
        clean = rows.repeat(len(part), 1, 1)
        target = denoising_target(clean, noise, timesteps, scheduler)
        errors = (denoiser(scheduler.add_noise(clean, noise, timesteps), timesteps).float() - target).square()
        total += errors.flatten(1).mean(1).view(len(part), len(rows)).sum(0).double().cpu()
    return total / len(steps)


def compare_with_gaussians(
    denoiser: Denoiser, train: torch.Tensor, held_out: torch.Tensor, scheduler: DDPMScheduler
) -> dict:
    """Losses on rows `(n, C, L)` that were not seen, beside those of what needs no training.

    Returns:
        `dict`: `loss`; `white_gaussian`, that of the best denoiser of N(0, 1), to which latents are scaled;
        `gaussian`, that of the best one of a Gaussian with mean and covariance of the rows `train` `(K, C, L)`;
        `difference`, loss minus `gaussian`, with its 95 % interval over the rows, `difference_ci95`, all three `None`
        where there are too few rows to fit it; and `n`, the number of rows.
    """
    options = (tuple(train.shape[1:]), scheduler.config.num_train_timesteps, scheduler.config.prediction_type)
    white, fitted = LatentGaussian(*options).to(train.device), LatentGaussian(*options).to(train.device)
    white.set_schedule(scheduler)
    fitted.set_schedule(scheduler)
    losses = denoising_losses(denoiser, held_out, scheduler)
    found = {
        "loss": losses.mean().item(),
        "white_gaussian": denoising_losses(white, held_out, scheduler).mean().item(),
        **dict.fromkeys(("gaussian", "difference", "difference_ci95")),
        "n": len(held_out),
    }
    if len(train) > train[0].numel():
        fitted.fit(train)
        of_gaussian = denoising_losses(fitted, held_out, scheduler)
        difference = losses - of_gaussian
        found |= {"gaussian": of_gaussian.mean().item(), "difference": difference.mean().item()}
        found["difference_ci95"] = sample_mean_interval(difference)
    return found


def compare_with_regression(
    model: ModelMixin, conditions: torch.Tensor, held_out: torch.Tensor, scheduler: DDPMScheduler
) -> dict:
    """Losses of a denoiser on rows `(n, C, L)` that were not seen, beside those of its closed form for conditions.

    Returns:
        `dict`: `regression`, the loss of the Gaussian around a regression of the conditions `(n, c)`;
        `regression_difference`, the denoiser's minus that, with its 95 % interval over the rows,
        `regression_difference_ci95`. Nothing where the closed form knows no condition.
    """
    if getattr(model, "regression", None) is None:
        return {}

    def losses(predict: Callable) -> torch.Tensor:
        def told(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            return predict(noisy, timesteps, conditions.repeat(len(noisy) // len(conditions), 1))

        return denoising_losses(told, held_out, scheduler)

    of_regression = losses(model.closed_form)
    difference = losses(lambda *inputs: model(*inputs, return_dict=False)[0]) - of_regression
    found = {"regression": of_regression.mean().item(), "regression_difference": difference.mean().item()}
    return {**found, "regression_difference_ci95": sample_mean_interval(difference)}
