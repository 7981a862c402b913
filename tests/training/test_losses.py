import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from pdiff_hf.models.config import PREDICTION_TYPES
from pdiff_hf.models.gaussian import LatentGaussian
from pdiff_hf.training.losses import (
    TrainingTargets,
    compare_with_gaussians,
    denoising_losses,
    denoising_target,
    min_snr_weights,
)

SHAPE = (2, 2)


def make_scheduler(prediction_type="v_prediction"):
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type)


def make_rows(num=3, seed=0):
    return torch.randn(num, *SHAPE, generator=torch.Generator().manual_seed(seed))


def make_batch(rows, timestep, num, latent_noise, scheduler):
    """Clean latents of a training step, their noise and their timesteps."""
    generator = torch.Generator().manual_seed(0)
    clean = rows[torch.randint(len(rows), (num,), generator=generator)]
    clean = clean + latent_noise * torch.randn(clean.shape, generator=generator)
    return clean, torch.randn(clean.shape, generator=generator), torch.full((num,), timestep)


@pytest.mark.parametrize(("kind", "weights"), [("epsilon", (0, 1)), ("sample", (1, 0)), ("v_prediction", (-0.6, 0.8))])
def test_target_is_what_the_scheduler_says(kind, weights):
    scheduler = DDPMScheduler(trained_betas=[0.36], prediction_type=kind)
    clean, noise = make_rows(5), make_rows(5, seed=1)
    expected = weights[0] * clean + weights[1] * noise
    torch.testing.assert_close(denoising_target(clean, noise, torch.zeros(5, dtype=torch.long), scheduler), expected)


def test_stable_target_of_a_condition_is_the_expectation_over_its_rows():
    rows, scheduler = make_rows(5), make_scheduler()
    batch = make_batch(rows[:2], 700, 6, 0.3, scheduler)
    others = torch.tensor([[False, False, True, True, True]] * 3 + [[False] * 5] * 3)
    _, found, _ = TrainingTargets(rows, scheduler, 0.3, stable=True)(*batch, others)
    _, of_condition, _ = TrainingTargets(rows[:2], scheduler, 0.3, stable=True)(*batch)
    _, of_all, _ = TrainingTargets(rows, scheduler, 0.3, stable=True)(*batch)
    torch.testing.assert_close(found, torch.cat([of_condition[:3], of_all[3:]]))
    assert not torch.allclose(of_condition, of_all, atol=1e-3)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("latent_noise", [0.0, 0.3])
@pytest.mark.parametrize("timestep", [1, 300, 700, 999])
def test_stable_target_is_the_expectation_over_all_rows(prediction_type, latent_noise, timestep):
    """Row by row in float64: how likely each is, and the mean of what it may have been before the noise."""
    rows, scheduler = make_rows(), make_scheduler(prediction_type)
    batch = make_batch(rows, timestep, 6, latent_noise, scheduler)
    noisy, found, _ = TrainingTargets(rows, scheduler, latent_noise, stable=True)(*batch)
    alpha = scheduler.alphas_cumprod[timestep].item()
    expected = []
    for x in noisy.double():
        densities, means = [], []
        for row in rows.double():
            variance = alpha * latent_noise**2 + 1 - alpha
            densities.append(torch.exp(-(x - alpha**0.5 * row).square().sum() / (2 * variance)).item())
            # The normal distributions N(row, latent_noise²) before and N(x / √ᾱ, (1-ᾱ) / ᾱ) after, multiplied.
            before, after = 1 / max(latent_noise, 1e-30) ** 2, alpha / (1 - alpha)
            means.append((before * row + after * x / alpha**0.5) / (before + after))
        clean = sum(p * mean for p, mean in zip(densities, means, strict=True)) / sum(densities)
        noise = (x - alpha**0.5 * clean) / (1 - alpha) ** 0.5
        velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean
        expected.append({"sample": clean, "epsilon": noise, "v_prediction": velocity}[prediction_type])
    # The noise is divided by 0.01 at first.
    torch.testing.assert_close(found, torch.stack(expected).float(), atol=2e-4 if timestep == 1 else 1e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("latent_noise", [0.0, 0.3])
def test_stable_target_has_the_gradient_of_the_single_one_on_average_and_a_smaller_variance(
    prediction_type, latent_noise
):
    """The gradient of a linear layer: the mean over the batch of (prediction - target) ⊗ noisy latents."""
    rows, scheduler = make_rows(), make_scheduler(prediction_type)
    batch = make_batch(rows, 500, 100_000, latent_noise, scheduler)
    (noisy, single, _), (_, stable, _) = (
        TrainingTargets(rows, scheduler, latent_noise, stable=is_stable)(*batch) for is_stable in (False, True)
    )
    inputs = torch.cat([noisy.flatten(1), torch.ones(len(noisy), 1)], 1).double()
    difference = (single - stable).flatten(1).double()[:, :, None] * inputs[:, None]
    errors = difference.std(0) / len(noisy) ** 0.5
    assert (difference.mean(0).abs() < 4.5 * errors).all()
    spread = [(target.flatten(1) - target.flatten(1).mean(0)).square().sum(1).mean() for target in (single, stable)]
    # What both share is what the noisy latents tell.
    assert spread[1] < 0.95 * spread[0]


def test_stable_target_of_one_row_is_its_own():
    rows, scheduler = make_rows(1), make_scheduler()
    clean, noise, timesteps = make_batch(rows, 500, 10, 0.0, scheduler)
    _, stable, _ = TrainingTargets(rows, scheduler, 0.0, stable=True)(clean, noise, timesteps)
    single = denoising_target(clean, noise, timesteps, scheduler)
    torch.testing.assert_close(stable, single, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_noise_and_target_of_a_step_are_the_schedulers(prediction_type):
    rows, scheduler = make_rows(), make_scheduler(prediction_type)
    clean, noise = make_rows(5, seed=1), make_rows(5, seed=2)
    timesteps = torch.tensor([0, 1, 500, 998, 999])
    targets = TrainingTargets(rows, scheduler, 0.1, stable=False, snr_gamma=5.0)
    noisy, target, weights = targets(clean, noise, timesteps)
    torch.testing.assert_close(noisy, scheduler.add_noise(clean, noise, timesteps))
    torch.testing.assert_close(target, denoising_target(clean, noise, timesteps, scheduler))
    torch.testing.assert_close(weights, min_snr_weights(timesteps, scheduler, 5.0))


def test_loss_is_weighted_where_weights_are_asked_for():
    rows, predicted, target = make_rows(), make_rows(4, seed=1), make_rows(4, seed=2)
    errors, weights = (predicted - target).square().flatten(1).mean(1), torch.tensor([1.0, 2.0, 3.0, 4.0])
    for gamma, expected in ((None, errors.mean()), (5.0, (weights * errors).mean())):
        targets = TrainingTargets(rows, make_scheduler(), 0.1, stable=True, snr_gamma=gamma)
        torch.testing.assert_close(targets.loss(predicted, target, weights), expected)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weights_are_those_of_the_loss_of_clean_latents(prediction_type):
    scheduler, timesteps = make_scheduler(prediction_type), torch.tensor([10, 500, 990])
    clean, noise, wrong = make_rows(3), make_rows(3, seed=1), make_rows(3, seed=2)
    # A wrong guess of the clean latents, with the noise that it implies.
    alphas = scheduler.alphas_cumprod[timesteps][:, None, None]
    noisy = scheduler.add_noise(clean, noise, timesteps)
    implied = (noisy - alphas.sqrt() * wrong) / (1 - alphas).sqrt()
    errors = denoising_target(wrong, implied, timesteps, scheduler) - denoising_target(
        clean, noise, timesteps, scheduler
    )
    snr = (alphas / (1 - alphas)).flatten()
    expected = snr.clamp_max(5) * (wrong - clean).square().flatten(1).mean(1)
    found = min_snr_weights(timesteps, scheduler, 5.0) * errors.square().flatten(1).mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


# Held-out losses


def make_gaussian(rows, scheduler):
    gaussian = LatentGaussian(SHAPE, len(scheduler.alphas_cumprod), scheduler.config.prediction_type)
    gaussian.set_schedule(scheduler)
    gaussian.fit(rows)
    return gaussian


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_loss_of_the_best_denoiser_is_the_variance_that_is_left(prediction_type):
    scheduler = make_scheduler(prediction_type)
    gaussian = make_gaussian(make_rows(40) * torch.tensor([[3, 1], [0.5, 0.1]]) + 1, scheduler)
    held_out = gaussian.sample(3000, torch.Generator().manual_seed(0))
    alphas = scheduler.alphas_cumprod[torch.linspace(0, 999, 100).long()].double().numpy()[:, None]
    variances = gaussian.variances.double().numpy()
    of_clean = variances * (1 - alphas) / (alphas * variances + 1 - alphas)
    # An error of the clean latents is one of √(ᾱ/(1-ᾱ)) times as much of the noise, and of 1/√(1-ᾱ) of the velocity.
    scale = {"sample": 1, "epsilon": alphas / (1 - alphas), "v_prediction": 1 / (1 - alphas)}[prediction_type]
    expected = np.mean(scale * of_clean)
    found = denoising_losses(gaussian, held_out, scheduler)
    assert found.shape == (3000,) and found.dtype == torch.float64
    assert found.mean().item() == pytest.approx(expected, rel=0.02)
    assert torch.equal(found, denoising_losses(gaussian, held_out, scheduler))


def test_losses_are_the_same_in_parts(monkeypatch):
    scheduler, rows = make_scheduler(), make_rows(40)
    gaussian = make_gaussian(rows, scheduler)
    whole = denoising_losses(gaussian, rows[:8], scheduler)
    monkeypatch.setattr("pdiff_hf.training.losses.BATCH", 8)
    torch.testing.assert_close(denoising_losses(gaussian, rows[:8], scheduler), whole)


def test_few_timesteps_are_each_taken_once():
    scheduler = DDPMScheduler(num_train_timesteps=10, prediction_type="v_prediction")
    seen = []

    def denoiser(noisy, timesteps):
        seen.extend(timesteps.tolist())
        return noisy

    denoising_losses(denoiser, make_rows(1), scheduler)
    assert seen == list(range(10))


def test_gaussian_beside_itself_differs_by_nothing():
    scheduler, train = make_scheduler(), make_rows(60)
    found = compare_with_gaussians(make_gaussian(train, scheduler), train, make_rows(9, seed=1), scheduler)
    assert found["n"] == 9 and found["loss"] == found["gaussian"]
    assert found["difference"] == 0 and found["difference_ci95"] == [0, 0]


def test_difference_is_to_the_full_gaussian_and_paired():
    scheduler, train = make_scheduler(), make_rows(60) * torch.tensor([[3, 1], [0.5, 0.1]])
    held_out = make_rows(9, seed=1) * torch.tensor([[3, 1], [0.5, 0.1]])
    white = LatentGaussian(SHAPE, 1000, "v_prediction")
    white.set_schedule(scheduler)
    found = compare_with_gaussians(white, train, held_out, scheduler)
    assert found["loss"] == found["white_gaussian"] > found["gaussian"]
    assert found["difference"] == pytest.approx(found["loss"] - found["gaussian"])
    # The interval of the paired differences.
    gaussian = make_gaussian(train, scheduler)
    losses = [denoising_losses(of, held_out, scheduler).numpy() for of in (white, gaussian)]
    differences = losses[0] - losses[1]
    half = 2.306 * differences.std(ddof=1) / 3
    assert found["difference_ci95"] == pytest.approx([differences.mean() - half, differences.mean() + half], rel=1e-3)


def test_of_too_few_rows_there_is_no_full_gaussian():
    scheduler = make_scheduler()
    white = LatentGaussian(SHAPE, 1000, "v_prediction")
    white.set_schedule(scheduler)
    found = compare_with_gaussians(white, make_rows(4), make_rows(2, seed=1), scheduler)
    assert found["gaussian"] is found["difference"] is found["difference_ci95"] is None and found["loss"] > 0
