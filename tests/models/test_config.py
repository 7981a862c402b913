import pytest

from pdiff_hf.data.vectors import split_rows
from pdiff_hf.models.auto import AUTOENCODER, DENOISER
from pdiff_hf.models.kinds import UNet1DConfig
from pdiff_hf.training.denoiser import split_validation


@pytest.mark.parametrize(
    ("num_rows", "latents", "options", "expected"),
    [
        (300, (32, 4), {}, (32, 4)),
        (10, (32, 4), {}, (2, 4)),
        (6, (32, 4), {}, (1, 4)),
        (4, (32, 4), {}, (1, 2)),
        (50, (1, 128), {}, (1, 44)),
        (50, (1, 128), {"kind": "pca"}, (1, 44)),
        (10, (1, 128), {"preset": "paper"}, (1, 128)),
    ],
)
def test_latents_are_as_many_as_the_checkpoints_allow(num_rows, latents, options, expected):
    config = AUTOENCODER.validate({"latent_channels": latents[0], "latent_length": latents[1], **options})
    found = config.fit_latents(
        UNet1DConfig(block_out_channels=(64, 128)), len(split_rows(num_rows, config.holdout_every)[0])
    )
    assert (found.latent_channels, found.latent_length) == expected


@pytest.mark.parametrize(
    ("num_rows", "options", "expected"),
    [
        (300, {}, 32),
        # 27 training rows; of these 3, or 7 with the gaps around a block, are not trained on.
        (30, {}, 23),
        (30, {"validate": "block"}, 19),
        (30, {"validate": "none"}, 26),
        (30, {"kind": "unet_1d"}, 26),
    ],
)
def test_rows_that_choose_the_step_are_no_rows_for_the_gaussian(num_rows, options, expected):
    config, denoiser = AUTOENCODER.validate({}), DENOISER.validate(options)
    train_rows, _ = split_rows(num_rows, config.holdout_every)
    found = config.fit_latents(denoiser, len(train_rows))
    assert (found.latent_channels, found.latent_length) == (expected, 1)
    # As many as there can be.
    runs = {"0": range(len(train_rows))}
    split_validation(denoiser, runs, expected)
    if denoiser.contains_gaussian and expected < 32:
        with pytest.raises(ValueError, match=rf"needs at least {expected + 2} checkpoints .* found {expected + 1} "):
            split_validation(denoiser, runs, expected + 1)
