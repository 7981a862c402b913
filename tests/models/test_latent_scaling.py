"""The way between the autoencoder's latents and those of the diffusion, with a factor for every value."""

import pytest
import torch

from factories import LATENTS, make_autoencoder, make_vectors
from pdiff_hf import AutoencoderIdentity, AutoencoderPCA, AutoencoderPDiff

KINDS = {"pca": AutoencoderPCA, "pdiff": AutoencoderPDiff}
WHITENINGS = (None, 0.0, 0.5, 1.0)


@torch.no_grad()
def make(kind, whitening):
    """An autoencoder whose statistics are those of its latents, with these."""
    autoencoder = make_autoencoder(kind)
    latents = autoencoder.encode(make_vectors()).latents
    autoencoder.set_latent_statistics(latents, whitening)
    return autoencoder, latents


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whitening", WHITENINGS)
def test_scaled_latents_have_mean_square_1_and_come_back(kind, whitening):
    autoencoder, latents = make(kind, whitening)
    scaled = autoencoder.scale_latents(latents)
    assert scaled.square().mean().item() == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(autoencoder.unscale_latents(scaled), latents, atol=1e-6, rtol=1e-5)
    noise = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(autoencoder.scale_latents(autoencoder.unscale_latents(noise)), noise, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whitening", WHITENINGS)
def test_factors_survive_saving_to_the_bit(tmp_path, kind, whitening):
    autoencoder, latents = make(kind, whitening)
    autoencoder.save_pretrained(tmp_path)
    loaded = KINDS[kind].from_pretrained(tmp_path)
    assert loaded.config.scaling_factor == autoencoder.config.scaling_factor
    assert torch.equal(loaded.scale_latents(latents), autoencoder.scale_latents(latents))
    assert torch.equal(loaded.unscale_latents(latents), autoencoder.unscale_latents(latents))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_a_value_is_divided_by_this_power_of_its_deviation_in_the_units_of_parameters(kind, whitening):
    """Components have orthonormal directions: scores times deviations are as long as what they stand for."""
    autoencoder, latents = make(kind, whitening)
    in_parameters = latents.flatten(1) * autoencoder.components.deviations
    deviations = in_parameters.std(0)
    assert deviations[0] > 2 * deviations[-1]
    scaled = autoencoder.scale_latents(latents).flatten(1).std(0)
    ratios = scaled / deviations ** (1 - whitening)
    torch.testing.assert_close(ratios, ratios[:1].expand(8), rtol=1e-4, atol=0)


def test_without_units_of_their_own_latents_are_taken_as_they_are():
    autoencoder = AutoencoderIdentity(num_parameters=8, latent_channels=4, latent_length=2)
    latents = torch.randn(30, 4, 2, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.1, 8).view(4, 2)
    assert autoencoder.latent_deviations is None
    for whitening in (0.0, 0.5, 1.0):
        autoencoder.set_latent_statistics(latents, whitening)
        ratios = autoencoder.scale_latents(latents).std(0) / latents.std(0) ** (1 - whitening)
        torch.testing.assert_close(ratios, ratios[:1, :1].expand(4, 2), rtol=1e-4, atol=0)


def test_one_factor_is_no_whitening_of_values_as_they_are():
    plain, latents = make("pca", None)
    assert isinstance(plain.config.scaling_factor, float)
    scaled = plain.scale_latents(latents)
    # Scores have variance 1, and so they stay.
    torch.testing.assert_close(scaled.std(0), torch.ones(4, 2), rtol=0.03, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_has_the_same_factors(kind):
    autoencoder, latents = make(kind, 0.5)
    expected = autoencoder.scale_latents(latents)
    found = autoencoder.to(torch.bfloat16).scale_latents(latents.bfloat16())
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.02)


def test_constant_latents_are_refused_in_a_line():
    autoencoder, latents = make("pca", None)
    for whitening in WHITENINGS:
        with pytest.raises(ValueError, match="the latents must be finite and vary") as error:
            autoencoder.set_latent_statistics(latents[:1].expand(5, 4, 2), whitening)
        assert "\n" not in str(error.value)
    latents = latents.clone()
    latents[:, 1, 1] = 0.1
    latents[:, 3, 0] = 0.1
    autoencoder.set_latent_statistics(latents)
    for whitening in (0.0, 0.5, 1.0):
        message = r"latent value 3 is the same for all checkpoints, found 2 such of 8; take fewer .*latent_whitening"
        with pytest.raises(ValueError, match=message) as error:
            autoencoder.set_latent_statistics(latents, whitening)
        assert "\n" not in str(error.value)


def test_values_of_the_mean_are_scaled_as_all_others():
    autoencoder, latents = make("pca", 0.5)
    mean = autoencoder.scale_latents(autoencoder.latent_mean)
    assert mean.shape == (LATENTS["latent_channels"], LATENTS["latent_length"])
    torch.testing.assert_close(mean, autoencoder.scale_latents(latents).mean(0), atol=1e-5, rtol=0)
