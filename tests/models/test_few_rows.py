import pytest

from pdiff_hf.data.vectors import split_rows
from pdiff_hf.models.auto import AUTOENCODER, DENOISER
from pdiff_hf.models.few_rows import fit_to_rows, num_held_out


def fit(num_rows, autoencoder=None, diffusion=None):
    return fit_to_rows(AUTOENCODER.validate(autoencoder or {}), DENOISER.validate(diffusion or {}), num_rows)


@pytest.mark.parametrize(
    ("num_rows", "held_out_every", "latents", "refuses"),
    # Held out: 1 of 3, 4 and 12 rows, 2 of 20, 3 of 30 and 10 of 100; an eighth of the others chooses the step.
    [
        (3, 3, 1, False),
        (4, 4, 1, False),
        (12, 10, 9, False),
        (20, 10, 15, False),
        (30, 10, 23, True),
        (100, 10, 32, True),
    ],
)
def test_latents_follow_the_number_of_checkpoints(num_rows, held_out_every, latents, refuses):
    autoencoder, _, lines = fit(num_rows)
    assert autoencoder.holdout_every == held_out_every
    assert autoencoder.num_latents == latents
    assert autoencoder.allow_poor_reconstruction is not refuses
    assert bool(lines) == (latents < 32)
    if lines:
        assert f"{num_rows} checkpoints: {latents} latent value" in lines[0] and "instead of 32" in lines[0]
        assert "expect networks between and around them" in lines[1]


def test_fewer_than_three_are_refused():
    with pytest.raises(ValueError, match="expected at least 3 checkpoints to learn from, found 2"):
        fit(2)


def test_three_checkpoints_leave_the_gaussian_as_it_is():
    _, diffusion, _ = fit(3)
    assert (diffusion.validate, diffusion.steps) == ("none", 1)
    _, diffusion, _ = fit(4)
    assert diffusion.validate == "between" and diffusion.steps > 1


def test_what_was_given_stays():
    given = {"latent_channels": 32, "holdout_every": 7, "allow_poor_reconstruction": False}
    autoencoder, diffusion, lines = fit(12, given, {"validate": "none"})
    assert all(getattr(autoencoder, key) == value for key, value in given.items())
    assert diffusion.validate == "none" and lines == []


def test_fitted_twice_is_fitted_once():
    once = fit(12)
    assert fit_to_rows(*once[:2], 12) == (*once[:2], [])


def test_rows_are_counted_as_they_are_split():
    for num_rows in range(1, 40):
        for every in range(2, 12):
            assert num_held_out(num_rows, every) == len(split_rows(num_rows, every)[1])
