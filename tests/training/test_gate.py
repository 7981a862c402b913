import pytest
import torch
from torch import nn

from pdiff_hf.evaluation.scores import ScoreEvaluator
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.models.kinds import AutoencoderIdentityConfig, AutoencoderPCAConfig, AutoencoderPDiffConfig
from pdiff_hf.results.metric import Metric
from pdiff_hf.training.gate import PoorReconstructionError, check_reconstruction, measure_scores
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
    assert '--set "autoencoder.allow_poor_reconstruction=true".' in typed and " autoencoder." not in typed.replace(
        "--set autoencoder.", ""
    )
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


def scored(metric, before, after, train):
    """The report of scores, of networks whose score is their only value."""
    network = nn.Linear(1, 1, bias=False)
    layout = ParameterLayout.from_model(network, "all")
    judge = ScoreEvaluator(lambda network: network.weight.item(), network, layout, metric, "a function")
    found = measure_scores(torch.tensor(before), torch.tensor(after), torch.tensor(train)[:, None], judge)
    return {"explained_variance": 1.0, "train_explained_variance": 1.0, "num_train": 3, **found}


@pytest.mark.parametrize(("higher_is_better", "sign"), [(True, 1), (False, -1)])
def test_a_score_may_get_worse_by_as_much_as_originals_differ(higher_is_better, sign):
    metric = Metric(name="error", higher_is_better=higher_is_better)
    # The standard deviation of 1, 2, 3 and 2 is 0.82.
    report = scored(metric, [2.0], [2 - sign * 0.8], [1.0, 2.0, 3.0])
    assert report["score_std"] == pytest.approx(0.8165, abs=1e-4) and report["score_drop"] == pytest.approx(
        0.98, abs=0.01
    )
    check_reconstruction(report, AutoencoderPCAConfig())
    better = scored(metric, [2.0], [2 + sign * 8.0], [1.0, 2.0, 3.0])
    assert better["score_drop"] < 0
    check_reconstruction(better, AutoencoderPCAConfig())
    worse = scored(metric, [2.0], [2 - sign * 0.9], [1.0, 2.0, 3.0])
    with pytest.raises(
        PoorReconstructionError, match="expected at most 1 standard deviations of the originals' "
    ) as caught:
        check_reconstruction(worse, AutoencoderPCAConfig())
    assert f"takes {metric.title} from 2 to " in str(caught.value) and "accuracy" not in str(caught.value)
    check_reconstruction(worse, AutoencoderPCAConfig(max_score_drop=1.2))


def test_where_all_originals_are_worth_the_same_nothing_may_be_lost():
    metric = Metric(name="gain")
    check_reconstruction(scored(metric, [2.0], [2.0], [2.0, 2.0]), AutoencoderPCAConfig())
    with pytest.raises(PoorReconstructionError, match="takes gain"):
        check_reconstruction(scored(metric, [2.0], [1.9], [2.0, 2.0]), AutoencoderPCAConfig())


def test_where_data_are_too_few_what_compares_functions_is_named():
    assert "kind=functional" in refuse(AutoencoderPCAConfig(), train=1.0)
    assert "kind=functional" not in refuse(AutoencoderPCAConfig())
