import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from pdiff_hf.models.gaussian import LatentGaussian

SHAPE = (3, 2)
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def make_latents(num_rows=64, seed=0):
    """Correlated latents with a mean, whose deviations go from 3 to 0.1."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    rows = torch.randn(num_rows, 6, generator=generator) * torch.linspace(3, 0.1, 6) @ directions
    return (rows + torch.randn(6, generator=generator)).unflatten(1, SHAPE)


def make_scheduler(prediction_type="v_prediction", **options):
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type, **options)


def make_gaussian(prediction_type="v_prediction", latents=None):
    scheduler = make_scheduler(prediction_type)
    gaussian = LatentGaussian(SHAPE, len(scheduler.alphas_cumprod), prediction_type)
    gaussian.set_schedule(scheduler)
    gaussian.fit(make_latents() if latents is None else latents)
    return gaussian


def conditioned(latents, x, alpha, prediction_type):
    """E[z | x] by mean and covariance of (z, x), Σ_zx Σ_xx⁻¹, in float64; what else is predicted is linear in it."""
    rows, x = latents.flatten(1).double().numpy(), x.flatten(1).double().numpy()
    mean, covariance = rows.mean(0), np.cov(rows.T)
    signal, sigma = np.sqrt(alpha), np.sqrt(1 - alpha)
    of_noisy = alpha * covariance + (1 - alpha) * np.eye(len(mean))
    clean = mean + (x - signal * mean) @ np.linalg.solve(of_noisy, signal * covariance)
    noise = (x - signal * clean) / sigma
    found = {"sample": clean, "epsilon": noise, "v_prediction": signal * noise - sigma * clean}[prediction_type]
    return torch.from_numpy(found).float().unflatten(1, SHAPE)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("timestep", [0, 1, 500, 998, 999])
def test_prediction_is_the_conditional_expectation(prediction_type, timestep):
    alpha = make_scheduler().alphas_cumprod[timestep].item()
    clean, noise = make_latents(5, seed=1), torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(2))
    x = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
    expected = conditioned(make_latents(), x, alpha, prediction_type)
    found = make_gaussian(prediction_type)(x, torch.full((5,), timestep))
    # float32 products; at first the noise is a hundredth of what it is computed from.
    torch.testing.assert_close(found, expected, atol=2e-3 if timestep < 2 else 1e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_between_two_timesteps_the_schedule_is_interpolated(prediction_type):
    odds = torch.logit(make_scheduler().alphas_cumprod.double())
    alpha = torch.lerp(odds[500], odds[501], 0.25).sigmoid().item()
    x = make_latents(5, seed=1)
    expected = conditioned(make_latents(), x, alpha, prediction_type)
    torch.testing.assert_close(make_gaussian(prediction_type)(x, torch.full((5,), 500.25)), expected)


@pytest.mark.parametrize(("outside", "edge"), [(-0.5, 0), (999.9, 999), (5000, 999)])
def test_beyond_the_schedule_is_its_end(outside, edge):
    gaussian, x = make_gaussian(), make_latents(5, seed=1)
    assert torch.equal(gaussian(x, torch.full((5,), outside)), gaussian(x, torch.full((5,), edge)))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_prediction_is_the_mean_of_what_may_have_become_the_noisy_latents(prediction_type):
    """Monte Carlo: many latents with their noise, weighted by how likely they are to give one x."""
    gaussian, scheduler = make_gaussian(prediction_type), make_scheduler(prediction_type)
    generator = torch.Generator().manual_seed(0)
    noise, timestep = torch.randn(1, *SHAPE, generator=generator), torch.tensor([800])
    alpha, x = scheduler.alphas_cumprod[800].double(), scheduler.add_noise(make_latents(1, seed=1), noise, timestep)
    clean = gaussian.sample(400_000, generator).flatten(1).double()
    noise = (x.flatten() - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    weights = (-noise.square().sum(1) / 2).softmax(0)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    targets = {"sample": clean, "epsilon": noise, "v_prediction": velocity}[prediction_type]
    found = gaussian(x, timestep).flatten()
    # Draws that count: 1 / Σ w².
    error = 5 * targets.std() * weights.square().sum().sqrt()
    assert error < 0.1
    torch.testing.assert_close(found.double(), weights @ targets, atol=error.item(), rtol=0)


def test_draws_have_mean_and_covariance_of_the_latents():
    latents, gaussian = make_latents().flatten(1), make_gaussian()
    drawn = gaussian.sample(20_000, torch.Generator().manual_seed(0))
    assert drawn.shape == (20_000, *SHAPE)
    assert torch.equal(drawn, gaussian.sample(20_000, torch.Generator().manual_seed(0)))
    # Of 20 000 draws with variances up to 9: 5 standard errors.
    torch.testing.assert_close(drawn.flatten(1).mean(0), latents.mean(0), atol=0.11, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.flatten(1).T), torch.cov(latents.T), atol=0.45, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_buffers_stay_in_float32(dtype):
    gaussian, x = make_gaussian(), make_latents(5, seed=1)
    expected = gaussian(x, torch.arange(5))
    cast = torch.nn.Sequential(make_gaussian()).to(dtype)[0]
    assert {buffer.dtype for buffer in cast.buffers()} == {torch.float32}
    assert torch.equal(cast(x, torch.arange(5)), expected)


def test_half_precision_and_moves_to_a_device_leave_the_values():
    halved, moved = make_gaussian().half(), make_gaussian().to("meta", torch.bfloat16)
    assert torch.equal(halved.basis, make_gaussian().basis)
    assert {(buffer.device.type, buffer.dtype) for buffer in moved.buffers()} == {("meta", torch.float32)}


def test_autocast_does_not_round_its_products():
    gaussian, x = make_gaussian(), make_latents(5, seed=1)
    expected = gaussian(x, torch.arange(5))
    with torch.autocast("cpu", torch.bfloat16):
        found = gaussian(x, torch.arange(5))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (make_latents(6), "the Gaussian of 6 latent values needs at least 7 checkpoints to train on, found 6 without"),
        (make_latents(1).expand(20, *SHAPE), "must be finite and vary, found that they are all the same"),
        (torch.full((20, *SHAPE), float("nan")), "must be finite and vary, found that some are not finite"),
        (make_latents().masked_fill(torch.eye(64, 6).view(64, *SHAPE) > 0, float("inf")), "must be finite and vary"),
    ],
)
def test_what_no_gaussian_can_be_fitted_to_is_refused_in_a_line(latents, message):
    gaussian = make_gaussian()
    before = gaussian.basis.clone()
    with pytest.raises(ValueError, match=message) as error:
        gaussian.fit(latents)
    assert "\n" not in str(error.value) and torch.equal(gaussian.basis, before)


def test_as_many_rows_as_there_must_be_are_enough():
    latents = make_latents(7)
    gaussian = make_gaussian(latents=latents)
    covariance = gaussian.basis * gaussian.variances @ gaussian.basis.T
    torch.testing.assert_close(covariance, torch.cov(latents.flatten(1).T), atol=1e-5, rtol=1e-5)


def test_a_latent_value_that_does_not_vary_is_always_predicted():
    latents = make_latents()
    latents[:, 1, 1] = 0.7
    predicted = make_gaussian("sample", latents)(torch.randn(4, *SHAPE), torch.tensor([5, 400, 800, 999]))
    # Sums of float32 products.
    torch.testing.assert_close(predicted[:, 1, 1], torch.full((4,), 0.7), atol=1e-5, rtol=0)


def test_prediction_type_is_one_of_diffusers():
    with pytest.raises(ValueError, match="prediction_type must be one of"):
        LatentGaussian(SHAPE, 10, "score")


def test_its_own_schedule_is_taken_also_by_another_kind():
    scheduler = make_scheduler()
    make_gaussian().check_schedule(DDIMScheduler.from_config(scheduler.config))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (DDPMScheduler(prediction_type="v_prediction"), "DDPMScheduler has another noise schedule than the denoiser"),
        (make_scheduler(num_train_timesteps=500), "DDPMScheduler has another noise schedule than the denoiser"),
        (make_scheduler(rescale_betas_zero_snr=True), "DDPMScheduler has another noise schedule than the denoiser"),
        (make_scheduler("epsilon"), "expects prediction_type='epsilon', the denoiser predicts 'v_prediction'"),
    ],
)
def test_another_schedule_is_refused_in_a_line(scheduler, message):
    with pytest.raises(ValueError, match=message) as error:
        make_gaussian().check_schedule(scheduler)
    assert "\n" not in str(error.value)
