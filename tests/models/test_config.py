import pytest

from pdiff_hf.data.vectors import split_rows
from pdiff_hf.models.auto import AUTOENCODER
from pdiff_hf.models.kinds import UNet1DConfig


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
    found = config.fit_latents(UNet1DConfig(), len(split_rows(num_rows, config.holdout_every)[0]))
    assert (found.latent_channels, found.latent_length) == expected
