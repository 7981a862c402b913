import warnings

import pytest
import torch
from safetensors.torch import load_file

from factories import LATENTS, make_layout, make_network
from pdiff_hf import PDiffPipeline
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.vectors import split_rows
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.files import read_json
from pdiff_hf.models.kinds import AutoencoderPCAConfig, UNet1DConditionConfig, UNet1DConfig
from pdiff_hf.training import loop as training_loop
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.diffusion import train_diffusion
from pdiff_hf.training.step_choice import StepChoice, candidate_steps

SMALL = {"block_out_channels": (32,), "train_batch_size": 16, "lr_warmup_steps": 0, "learning_rate": 1e-2}


# The rule


@pytest.mark.parametrize(
    ("num_steps", "with_first", "expected"),
    [
        (500, True, [*range(0, 501, 50)]),
        (500, False, [*range(50, 501, 50)]),
        (7, True, [*range(8)]),
        (1, True, [0, 1]),
        (1, False, [1]),
    ],
)
def test_candidates_are_evenly_spaced_and_end_with_the_last_step(num_steps, with_first, expected):
    assert candidate_steps(num_steps, with_first) == expected


def choose(losses_by_step):
    """Offers one weight per step, which is the step, with the losses given, and puts back what is kept."""
    weight = torch.nn.Parameter(torch.zeros(1))
    choice = StepChoice(lambda model: torch.tensor(losses_by_step[int(weight)]), [*losses_by_step])
    choice.of([weight])
    for step in losses_by_step:
        with torch.no_grad():
            weight.fill_(step)
        choice.consider(step, torch.nn.Identity())
    choice.restore()
    assert int(weight) == choice.kept_step
    means = {step: sum(losses) / len(losses) for step, losses in losses_by_step.items()}
    assert choice.curve == pytest.approx(means, nan_ok=True)
    return choice.kept_step


@pytest.mark.parametrize(
    ("losses_by_step", "kept"),
    [
        ({0: [2.0, 1.0, 1.5], 5: [1.0, 0.1, 0.5], 10: [1.2, 0.2, 0.6]}, 5),
        ({0: [2.0, 1.0, 1.5], 5: [1.5, 0.6, 1.0], 10: [1.2, 0.2, 0.6]}, 10),
        # Better on average, but not beyond doubt.
        ({0: [2.0, 1.0, 1.5], 5: [0.1, 1.2, 1.6]}, 0),
        ({0: [2.0, 1.0, 1.5], 5: [0.1, 1.2, 1.6], 10: [1.8, 0.8, 1.3]}, 10),
        # One row alone leaves doubt.
        ({0: [2.0], 5: [0.1]}, 0),
        ({0: [2.0, 1.0], 5: [float("nan")] * 2, 10: [3.0, 3.0]}, 0),
        # Of a denoiser without a beginning that is worth something, the best is kept.
        ({5: [1.0, 0.2], 10: [0.1, 1.0], 15: [1.0, 1.0]}, 10),
        ({5: [1.0], 10: [0.5]}, 10),
    ],
)
def test_the_smallest_loss_is_kept_and_the_beginning_left_only_beyond_doubt(losses_by_step, kept):
    assert choose(losses_by_step) == kept


def test_a_choice_goes_on_from_its_state_with_what_it_has_to_be_better_than():
    weight, losses = torch.nn.Parameter(torch.zeros(1)), {0: [2.0, 1.0, 1.5], 5: [0.1, 1.2, 1.6], 10: [1.8, 0.8, 1.3]}
    for stop in (0, 5):
        choices = [StepChoice(lambda model: torch.tensor(losses[int(weight)]), [*losses]) for _ in range(2)]
        for step in losses:
            choice = choices[step > stop]
            choice.of([weight])
            if step > stop and choice.kept_step is None:
                choice.load_state_dict(choices[0].state_dict())
            with torch.no_grad():
                weight.fill_(step)
            choice.consider(step, torch.nn.Identity())
            # Step 5 is better on average, but not beyond doubt.
            assert choice.kept_step == (10 if step == 10 else 0)
        choice.restore()
        assert int(weight) == 10 and [*choice.curve] == [0, 5, 10]


# In training


def make_dataset(folder, is_gaussian):
    """Networks along a curve in ten directions, with a little noise, or from a Gaussian of them."""
    generator, start = torch.Generator().manual_seed(0), make_layout().flatten(make_network())
    if is_gaussian:
        scores = torch.randn(120, 10, generator=generator)
    else:
        angles = 6.28 * torch.linspace(0, 1, 120)[:, None] * torch.arange(1, 4)
        scores = torch.cat([angles.sin(), angles.cos()], 1) + 0.02 * torch.randn(120, 6, generator=generator)
        scores = torch.cat([scores, 0.02 * torch.randn(120, 4, generator=generator)], 1)
    vectors = start + 0.1 * scores @ torch.randn(10, len(start), generator=generator)
    save_parameter_dataset(vectors, make_layout(), folder / "dataset")
    config = AutoencoderPCAConfig(**LATENTS, min_explained_variance=0)
    train_autoencoder(folder / "dataset", folder / "autoencoder", config)
    return folder


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("gaussian"), True)


@pytest.fixture(scope="module")
def curve(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("curve"), False)


def train(source, folder, resume=None, kind=UNet1DConditionConfig, **options):
    config = kind(**{"steps": 40, **SMALL, **options})
    pipeline = train_diffusion(source / "dataset", source / "autoencoder", folder, config, resume)
    return pipeline, read_json(folder / "denoiser.json")


def test_of_a_gaussian_the_gaussian_is_kept_exactly(gaussian, tmp_path):
    pipeline, record = train(gaussian, tmp_path)
    assert record["kept_step"] == 0 and [*record["curve"]] == [str(step) for step in range(0, 41, 4)]
    found = record["held_out"]["between"]
    assert found["loss"] == found["gaussian"]
    assert found["difference"] == 0 and found["difference_ci95"] == [0, 0] and found["n"] == 12
    # Fitted to all rows that the gate does not hold out, those for validation among them.
    assert (record["num_train"], record["num_validation"]) == (94, 14)
    autoencoder = pipeline.autoencoder
    rows = ParameterDataset(gaussian / "dataset").vectors()[split_rows(120, 10)[0]]
    expected = autoencoder.scale_latents(autoencoder.encode_rows(rows)).flatten(1)
    torch.testing.assert_close(pipeline.unet.gaussian.mean, expected.mean(0), atol=1e-5, rtol=0)
    basis, variances = pipeline.unet.gaussian.basis, pipeline.unet.gaussian.variances
    torch.testing.assert_close(basis * variances @ basis.T, torch.cov(expected.T), atol=1e-5, rtol=1e-4)


def test_of_a_curve_more_than_the_gaussian_is_kept(curve, tmp_path):
    pipeline, record = train(curve, tmp_path, steps=300, train_batch_size=64)
    kept = str(record["kept_step"])
    assert record["kept_step"] > 0 and record["curve"][kept] < 0.9 * record["curve"]["0"]
    found = record["held_out"]["between"]
    assert found["difference"] < 0 and found["difference_ci95"][1] < 0
    assert found["loss"] < 0.9 * found["gaussian"]
    # What was saved is what was measured.
    loaded = PDiffPipeline.from_pretrained(tmp_path)
    weights = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in pipeline.unet.state_dict().items())
    assert loaded.unet.conv_out.weight.any()


def test_rows_of_the_gate_change_nothing(curve, tmp_path):
    """Every tenth row, which the autoencoder has not seen, is nothing but a measure of the denoiser."""
    pipeline, record = train(curve, tmp_path / "one", steps=8)
    dataset = ParameterDataset(curve / "dataset")
    vectors = dataset.vectors().clone()
    vectors[5::10] += 1
    save_parameter_dataset(vectors, dataset.layout, tmp_path / "dataset")
    (tmp_path / "autoencoder").symlink_to(curve / "autoencoder")
    other, changed = train(tmp_path, tmp_path / "two", steps=8)
    assert all(torch.equal(value, other.unet.state_dict()[name]) for name, value in pipeline.unet.state_dict().items())
    assert record["curve"] == changed["curve"] and record["held_out"] != changed["held_out"]


@pytest.mark.parametrize("kind", [UNet1DConditionConfig, UNet1DConfig])
def test_nothing_is_chosen_where_nothing_validates(curve, tmp_path, kind):
    _, record = train(curve, tmp_path, kind=kind, steps=3, validate="none")
    assert (record["kept_step"], record["curve"], record["num_validation"]) == (3, {}, 0)
    assert record["num_train"] == 108


def test_a_denoiser_without_a_gaussian_keeps_its_best_step(curve, tmp_path):
    _, record = train(curve, tmp_path, kind=UNet1DConfig, steps=10, validate="between")
    assert [*record["curve"]] == [str(step) for step in range(1, 11)]
    assert record["curve"][str(record["kept_step"])] == min(record["curve"].values())


@pytest.mark.parametrize("use_ema", [True, False])
def test_looking_at_a_step_leaves_the_training_as_it_is(curve, tmp_path, monkeypatch, use_ema):
    train(curve, tmp_path / "often", steps=20, use_ema=use_ema)
    monkeypatch.setattr("pdiff_hf.training.denoiser.candidate_steps", lambda steps, with_first: [steps])
    train(curve, tmp_path / "once", steps=20, use_ema=use_ema)
    logs = [(tmp_path / name / "train_log.jsonl").read_text() for name in ("often", "once")]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 2


class _KilledError(Exception):
    pass


# Rows that are trained on: without those for validation, or at last all.
@pytest.mark.parametrize(
    ("source", "kind", "validate", "rows"),
    [
        ("gaussian", UNet1DConditionConfig, "between", 94),
        ("curve", UNet1DConditionConfig, "between", 94),
        ("curve", UNet1DConditionConfig, "block", 80),
        ("curve", UNet1DConfig, "block", 80),
        ("curve", UNet1DConfig, "block", 108),
    ],
)
def test_resumed_training_chooses_the_same_step_and_weights(
    request, source, kind, validate, rows, tmp_path, monkeypatch
):
    source = request.getfixturevalue(source)
    options = {"kind": kind, "steps": 20, "checkpointing_steps": 9, "validate": validate}
    if rows == 108:
        # On all rows it is trained for as long as was best.
        monkeypatch.setattr("pdiff_hf.training.denoiser.candidate_steps", lambda steps, with_first: [steps])
    expected, record = train(source, tmp_path / "straight", **options)
    with monkeypatch.context() as patch:
        original = training_loop.GlobalBatch

        def killed(num_rows, batch_size, step, *args, **kwargs):
            if (step, num_rows) == (14, rows):
                raise _KilledError
            return original(num_rows, batch_size, step, *args, **kwargs)

        patch.setattr(training_loop, "GlobalBatch", killed)
        with pytest.raises(_KilledError):
            train(source, tmp_path / "killed", **options)
    assert any((tmp_path / "killed").rglob("checkpoint-*"))
    found, again = train(source, tmp_path / "killed", "latest", **options)
    assert again == record
    weights = found.unet.state_dict()
    assert [name for name, value in expected.unet.state_dict().items() if not torch.equal(value, weights[name])] == []


def test_the_best_step_from_before_a_checkpoint_is_in_it(curve, tmp_path):
    """Of a denoiser without a Gaussian, at a rate that ruins in the end what was learned."""
    options = {"kind": UNet1DConfig, "steps": 40, "checkpointing_steps": 30, "lr_scheduler": "linear"}
    options |= {"use_ema": False, "validate": "between", "learning_rate": 0.3, "lr_warmup_steps": 39}
    expected, record = train(curve, tmp_path / "run", **options)
    assert record["kept_step"] < 30 and (tmp_path / "run" / "checkpoint-30").is_dir()
    found, again = train(curve, tmp_path / "run", "latest", **options)
    assert again == record
    weights = found.unet.state_dict()
    assert [name for name, value in expected.unet.state_dict().items() if not torch.equal(value, weights[name])] == []


@pytest.mark.parametrize(("schedule", "warned"), [("squaredcos_cap_v2", True), ("linear", False)])
def test_noise_predicted_where_nothing_of_the_latents_is_left_is_named(curve, tmp_path, schedule, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(curve, tmp_path, steps=1, prediction_type="epsilon", beta_schedule=schedule)
    assert any("Take prediction_type=v_prediction" in str(warning.message) for warning in caught) == warned
