import pytest

from pdiff_hf.models.kinds import AutoencoderIdentityConfig, AutoencoderPCAConfig, AutoencoderPDiffConfig
from pdiff_hf.training.gate import PoorReconstructionError, check_reconstruction
from pdiff_hf.wording import typed_options

FLAGS = {"allow_poor_reconstruction": "--allow_poor", "steps": "--max_train_steps"}


def refuse(config, train=0.5, num_train=1000):
    report = {"explained_variance": 0.5, "train_explained_variance": train, "num_train": num_train}
    with pytest.raises(PoorReconstructionError) as caught:
        check_reconstruction(report, config)
    text = str(caught.value)
    assert "\n" not in text and "go on all the same: allow_poor_reconstruction=true." in text
    with typed_options({"overrides": "--set"}), pytest.raises(PoorReconstructionError) as caught:
        check_reconstruction(report, config)
    typed = str(caught.value)
    assert '--set "autoencoder.allow_poor_reconstruction=true".' in typed
    with typed_options(FLAGS), pytest.raises(PoorReconstructionError, match=r"all the same: --allow_poor\.$"):
        check_reconstruction(report, config)
    return text


def test_what_needs_no_steps_is_not_told_to_take_more():
    text = refuse(AutoencoderPCAConfig())
    assert "steps" not in text and "kind=pca" not in text
    assert "more latent values (latent_channels × latent_length, now 32 × 1)" in text


def test_no_more_latent_values_are_advised_than_checkpoints_tell_apart():
    text = refuse(AutoencoderPCAConfig(latent_channels=8), num_train=9)
    assert "more checkpoints for more latent values" in text and "9 training checkpoints have no more" in text


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_what_is_trained_is_told_of_steps_and_of_the_closed_form(preset):
    config = AutoencoderPDiffConfig(preset=preset)
    text = refuse(config)
    assert f"more steps (steps, now {config.steps})" in text and "(kind=pca)" in text


def test_what_has_no_latents_of_its_own_is_not_told_of_them():
    text = refuse(AutoencoderIdentityConfig())
    assert "latent" not in text and "steps" not in text


def test_where_data_are_too_few_what_compares_functions_is_named():
    assert "kind=functional" in refuse(AutoencoderPCAConfig(), train=1.0)
    assert "kind=functional" not in refuse(AutoencoderPCAConfig())
