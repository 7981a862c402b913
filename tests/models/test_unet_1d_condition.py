import json

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file
from torch import nn

import pdiff_hf
from pdiff_hf import UNet1DConditionModel
from pdiff_hf.models.patches import PatchConv1d, PatchConvTranspose1d
from pdiff_hf.models.unet_1d_condition import _Norm

SCHEDULER = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
TIMESTEPS = torch.tensor([0, 10, 400, 800, 999])
# Of conditions: the arguments of the model, and conditions for five rows.
CONDITIONS = {
    "indices": ({"num_class_embeds": 3}, torch.tensor([0, 1, 2, 1, 0])),
    "timestep": ({"class_embed_type": "timestep"}, torch.linspace(0, 100, 5)),
    "identity": ({"class_embed_type": "identity"}, torch.randn(5, 64, generator=torch.Generator().manual_seed(3))),
    "projection": (
        {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2},
        torch.randn(5, 2, generator=torch.Generator().manual_seed(3)),
    ),
    "projection with a regression": (
        {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2, "has_regression": True},
        torch.randn(5, 2, generator=torch.Generator().manual_seed(3)),
    ),
    "simple_projection": (
        {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 2},
        torch.randn(5, 2, generator=torch.Generator().manual_seed(3)),
    ),
}


def noisy(channels=4, length=2, num=5, seed=1):
    return torch.randn(num, channels, length, generator=torch.Generator().manual_seed(seed))


def make_model(channels=4, length=2, is_trained=True, has_regression=False, **options):
    """A small model of the Gaussian of some latents; a trained one has a residual of its own."""
    torch.manual_seed(0)
    options = {"block_out_channels": (16,), **options}
    model = UNet1DConditionModel(sample_size=length, in_channels=channels, **options)
    latents, labels = 2 * noisy(channels, length, 80, seed=0) + 1, None
    if has_regression:
        labels = torch.randn(80, 2, generator=torch.Generator().manual_seed(4))
        latents = latents + means_of(labels, channels, length)
    model.fit_gaussian(latents, SCHEDULER, labels)
    if is_trained:
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def means_of(labels, channels, length):
    """Where latents with conditions `(K, 2)` are."""
    directions = torch.randn(2, channels * length, generator=torch.Generator().manual_seed(5))
    return (3 * labels @ directions).unflatten(1, (channels, length))


@torch.no_grad()
def predict(model, sample=None, **options):
    sample = noisy(*model.gaussian.latent_shape) if sample is None else sample
    return model(sample, TIMESTEPS[: len(sample)], **options).sample


@pytest.mark.parametrize("length", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("levels", [(16,), (16, 24), (8, 16, 16, 24)])
@pytest.mark.parametrize("layers", [1, 2])
def test_before_training_it_is_its_gaussian_and_every_length_and_depth_is_taken(length, levels, layers):
    options = {"length": length, "block_out_channels": levels, "layers_per_block": layers}
    model = make_model(is_trained=False, **options)
    assert torch.equal(predict(model), model.gaussian(noisy(4, length), TIMESTEPS))
    trained = make_model(**options)
    assert predict(trained).shape == (5, 4, length)
    assert not torch.allclose(predict(trained), trained.gaussian(noisy(4, length), TIMESTEPS), atol=1e-2)


@pytest.mark.parametrize(("length", "lengths"), [(8, [8, 4, 2, 1, 1]), (6, [6, 3, 3, 3, 3]), (1, [1] * 5)])
def test_each_level_halves_an_even_length(length, lengths):
    model, found = make_model(length=length, block_out_channels=(8,) * 5), []
    for block in model.down_blocks:
        block.register_forward_hook(lambda module, inputs, output: found.append(output[0].shape[2]))
    predict(model)
    assert found == lengths


def test_on_the_way_up_each_layer_sees_what_one_on_the_way_down_gave():
    model, down, up = make_model(length=4, block_out_channels=(16, 24), layers_per_block=2), [], []
    for block in model.down_blocks:
        block.register_forward_hook(lambda module, inputs, output: down.extend(output[1]))
    for layer in (layer for block in model.up_blocks for layer in block.layers):
        layer.norm1.register_forward_pre_hook(lambda module, inputs: up.append(inputs[0].chunk(2, 1)[1]))
    predict(model)
    assert len(down) == len(up) == 4
    assert all(torch.equal(given, seen) for given, seen in zip(down, reversed(up), strict=True))


@pytest.mark.parametrize("levels", [(16,), (16, 24)])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_matrix_products_are_the_convolutions_and_norms_of_the_library(levels, length):
    model = make_model(length=length, block_out_channels=levels).double()
    fast = predict(model, noisy(4, length).double())
    classes = {PatchConv1d: nn.Conv1d, PatchConvTranspose1d: nn.ConvTranspose1d, _Norm: nn.GroupNorm}
    replaced = [module for module in model.modules() if type(module) in classes]
    for module in replaced:
        module.__class__ = classes[type(module)]
    assert {type(module) for module in replaced} >= ({nn.Conv1d} if length == 1 else set()) | {nn.GroupNorm}
    # float64; what the Gaussian gives is float32 and the same.
    torch.testing.assert_close(predict(model, noisy(4, length).double()), fast, atol=1e-12, rtol=1e-12)


def test_over_one_position_no_convolution_of_the_library_is_left():
    model = make_model(length=1, block_out_channels=(16, 24))
    convolutions = [type(m) for m in model.modules() if isinstance(m, (nn.Conv1d, nn.ConvTranspose1d))]
    assert set(convolutions) == {PatchConv1d, PatchConvTranspose1d}


@pytest.mark.parametrize("condition", [None, *CONDITIONS])
def test_saved_and_loaded_it_gives_the_same(tmp_path, condition):
    options, labels = CONDITIONS.get(condition, ({}, None))
    model = make_model(**options)
    model.save_pretrained(tmp_path)
    loaded = UNet1DConditionModel.from_pretrained(tmp_path)
    has_regression = options.get("has_regression", False)
    expected = {key: value for key, value in options.items() if key != "has_regression"}
    assert not loaded.training and dict(loaded.config).items() >= expected.items()
    assert (loaded.regression is not None) == has_regression
    assert torch.equal(predict(loaded, class_labels=labels), predict(model, class_labels=labels))
    assert load_file(tmp_path / "diffusion_pytorch_model.safetensors").keys() == model.state_dict().keys()


def test_it_is_a_public_name_that_saved_pipelines_are_found_by():
    assert pdiff_hf.UNet1DConditionModel is UNet1DConditionModel
    assert "UNet1DConditionModel" in pdiff_hf.__all__


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_leaves_the_gaussian_in_float32(tmp_path, dtype):
    model = make_model()
    model.save_pretrained(tmp_path)
    expected = model.gaussian.state_dict()
    for half in (UNet1DConditionModel.from_pretrained(tmp_path, torch_dtype=dtype), make_model().to(dtype)):
        assert half.dtype == dtype and half.conv_out.weight.dtype == dtype
        for name, buffer in half.gaussian.state_dict().items():
            assert buffer.dtype == torch.float32 and torch.equal(buffer, expected[name]), name
        found = predict(half, noisy().to(dtype))
        assert found.dtype == dtype
        # 8 bits of mantissa of values up to 10, through a dozen layers.
        torch.testing.assert_close(found.float(), predict(model), atol=0.5, rtol=0.1)
        # In float32 given, in float32 returned.
        assert predict(half).dtype == torch.float32


def test_untrained_half_precision_is_the_gaussian_in_float32():
    model = make_model(is_trained=False)
    assert torch.equal(predict(make_model(is_trained=False).half()), predict(model))


def test_autocast_leaves_the_gaussian_alone():
    model = make_model(is_trained=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = predict(model)
    assert torch.equal(found, predict(model))


@pytest.mark.parametrize("length", [1, 4])
def test_a_row_does_not_depend_on_its_batch(length):
    model = make_model(length=length)
    together = predict(model)
    for row in range(5):
        with torch.no_grad():
            alone = model(noisy(4, length)[row : row + 1], TIMESTEPS[row]).sample
        # Other kernels for one row.
        torch.testing.assert_close(alone[0], together[row], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_a_timestep_may_be_a_number_or_a_tensor():
    model, x = make_model(), noisy()
    expected = model(x, torch.full((5,), 400)).sample
    for timestep in (400, 400.0, torch.tensor(400), torch.tensor([400]), torch.tensor(400.0)):
        assert torch.equal(model(x, timestep).sample, expected)
    assert not torch.allclose(model(x, 400.5).sample, expected, atol=1e-5)


def test_a_tuple_has_the_sample():
    model = make_model()
    with torch.no_grad():
        (found,) = model(noisy(), TIMESTEPS, return_dict=False)
    assert torch.equal(found, predict(model))


def gradients(model, labels=None):
    model.zero_grad()
    model(noisy(*model.gaussian.latent_shape), TIMESTEPS, class_labels=labels).sample.square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("length", [1, 4])
def test_gradient_checkpointing_gives_the_same_gradients(length):
    model = make_model(length=length, block_out_channels=(16, 24), layers_per_block=2).train()
    expected = gradients(model)
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda t: t):
        found = gradients(model)
    assert {name: torch.equal(found[name], expected[name]) for name in expected} == dict.fromkeys(expected, True)
    model.disable_gradient_checkpointing()
    fewer = len(saved)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda t: t):
        gradients(model)
    assert fewer < (len(saved) - fewer) / 2


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("condition", [None, *CONDITIONS])
def test_once_training_has_begun_every_parameter_has_a_gradient(length, condition):
    options, labels = CONDITIONS.get(condition, ({}, None))
    options = {"length": length, "block_out_channels": (16, 24), "class_dropout_prob": 0.5, **options}
    model = make_model(is_trained=False, **options).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = {name for name, gradient in gradients(model, labels).items() if gradient is not None and gradient.any()}
    assert first == {"conv_out.weight", "conv_out.bias"}
    optimizer.step()
    torch.manual_seed(1)
    found = gradients(model, labels)
    assert [name for name, gradient in found.items() if gradient is None or not gradient.any()] == []


# Conditions


@pytest.mark.parametrize("condition", CONDITIONS)
def test_conditions_are_known_and_without_them_the_null_vector_is(condition):
    options, labels = CONDITIONS[condition]
    model = make_model(**options)
    given, unknown = predict(model, class_labels=labels), predict(model)
    assert not torch.isclose(given, unknown, atol=1e-4).flatten(1).all(1).any()
    assert not torch.allclose(given, predict(model, class_labels=labels.roll(1, 0)), atol=1e-4)
    # Some rows are dropped, or all.
    dropped = torch.tensor([True, False, True, False, False])
    found = predict(model, class_labels=labels, force_drop_ids=dropped)
    assert torch.equal(found, torch.where(dropped[:, None, None], unknown, given))
    with torch.no_grad():
        model.null_embedding += 1
    assert torch.equal(predict(model, class_labels=labels), given)
    assert not torch.allclose(predict(model), unknown, atol=1e-3)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_training_drops_its_share_of_the_conditions_and_inference_none(condition):
    options, labels = CONDITIONS[condition]
    model = make_model(class_dropout_prob=0.3, **options)
    given, unknown = predict(model, class_labels=labels), predict(model)
    torch.manual_seed(0)
    model.train()
    draws = torch.stack([predict(model, class_labels=labels) for _ in range(100)])
    dropped, kept = ((draws == expected).flatten(2).all(2) for expected in (unknown, given))
    assert (dropped ^ kept).all()
    # Of 500: three standard errors.
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.06)
    undropped = predict(model, class_labels=labels, force_drop_ids=torch.zeros(5, dtype=torch.bool))
    assert torch.equal(undropped, given)


def test_conditions_are_cast_to_the_model():
    options, labels = CONDITIONS["projection"]
    half = make_model(**options).to(torch.bfloat16)
    assert predict(half, noisy().bfloat16(), class_labels=labels).dtype == torch.bfloat16


def test_labels_for_a_model_without_conditions_are_refused():
    with pytest.raises(ValueError, match="knows no conditions; leave class_labels out"):
        predict(make_model(), class_labels=torch.zeros(5, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_embed_type": "text"}, r"class_embed_type must be one of .*, got 'text'"),
        ({"class_embed_type": "projection"}, "'projection' needs projection_class_embeddings_input_dim"),
        ({"class_embed_type": "simple_projection"}, "'simple_projection' needs projection_class_embeddings_input_dim"),
        ({"prediction_type": "score"}, "prediction_type must be one of .*, got 'score'"),
    ],
)
def test_options_that_are_not_known_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        UNet1DConditionModel(**options)


# The Gaussian around a regression of the condition

TOLD = CONDITIONS["projection with a regression"]


def test_before_training_it_is_the_gaussian_around_what_a_regression_expects():
    options, labels = TOLD
    model = make_model(is_trained=False, **options)
    assert model.explained > 0.3 and model.config.num_condition_centers == len(model.regression.centers)
    assert (model.regression(labels) - 1 - means_of(labels, 4, 2).flatten(1)).abs().mean() < 0.8
    found = predict(model, class_labels=labels)
    for row, mean in enumerate(model.regression(labels)):
        model.conditional_gaussian.mean.copy_(mean)
        torch.testing.assert_close(
            found[row], model.conditional_gaussian(noisy(), TIMESTEPS)[row], atol=1e-5, rtol=1e-5
        )
    # Of what is left around it, the variance of 2² that make_model gives, and what 80 conditions leave open.
    assert 3 < model.conditional_gaussian.variances.mean() < 6 < model.gaussian.variances.mean()
    assert torch.equal(predict(model), model.gaussian(noisy(), TIMESTEPS))


def test_to_train_with_there_are_means_that_rows_were_left_out_of():
    options, labels = TOLD
    model = make_model(is_trained=False, **options)
    told = torch.randn(80, 2, generator=torch.Generator().manual_seed(4))
    latents = 2 * noisy(num=80, seed=0) + 1 + means_of(told, 4, 2)
    means = model.fit_gaussian(latents, SCHEDULER, told)
    rest = latents.flatten(1) - means
    torch.testing.assert_close(rest.square().sum(1).mean(), model.conditional_gaussian.variances.sum())
    assert rest.square().sum() > 1.02 * (latents.flatten(1) - model.regression(told)).square().sum()
    with torch.no_grad():
        shifted = model(noisy(), TIMESTEPS, class_labels=labels, class_means=model.regression(labels) + 1).sample
    assert not torch.allclose(shifted, predict(model, class_labels=labels), atol=0.1)


def test_conditions_that_explain_nothing_leave_the_gaussian():
    torch.manual_seed(0)
    options = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2}
    model = UNet1DConditionModel(sample_size=2, in_channels=4, block_out_channels=(16,), **options)
    model.fit_gaussian(noisy(num=80), SCHEDULER, torch.randn(80, 2))
    assert model.regression is None and model.explained is None and model.config.num_condition_centers is None
    labels = torch.randn(5, 2)
    assert torch.equal(predict(model, class_labels=labels), predict(model))


def test_folders_of_before_know_no_regression(tmp_path):
    options, labels = CONDITIONS["projection"]
    model = make_model(**options)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["num_condition_centers"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = UNet1DConditionModel.from_pretrained(tmp_path)
    assert torch.equal(predict(loaded, class_labels=labels), predict(model, class_labels=labels))


def test_half_precision_leaves_the_regression_in_float32(tmp_path):
    options, labels = TOLD
    model = make_model(is_trained=False, **options)
    model.save_pretrained(tmp_path)
    half = UNet1DConditionModel.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert {buffer.dtype for buffer in half.buffers()} == {torch.float32}
    assert torch.equal(predict(half, class_labels=labels), predict(model, class_labels=labels))


# Conditions of which something is left open


def make_open_model(with_open=True):
    """Told two numbers and which of them are known, and what it was told of its rows."""
    options = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 4}
    model = UNet1DConditionModel(sample_size=2, in_channels=4, block_out_channels=(16,), **options)
    numbers = torch.randn(200, 2, generator=torch.Generator().manual_seed(4))
    latents = 0.5 * noisy(num=200, seed=0) + 1 + means_of(numbers, 4, 2)
    known = torch.cat([torch.tensor([[1.0, 1]]), torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 0]])])
    told = torch.cat([torch.cat([numbers * bits, bits.expand(200, -1)], 1) for bits in known])
    model.fit_gaussian(latents, SCHEDULER, told[:200], None, told if with_open else None)
    return model.eval(), numbers, told.view(3, 200, 4)


def test_where_something_is_left_open_it_is_the_gaussian_around_what_is_known():
    model, numbers, (complete, first, nothing) = make_open_model()
    assert model.config.num_open_centers == len(model.open_regression.centers)
    one_known = numbers * torch.tensor([1.0, 0.0])
    # The means of 200 rows, whose other number adds a deviation of about 3 in each of the eight values.
    expected = 1 + means_of(one_known, 4, 2).flatten(1)
    assert (model.expected(first) - expected).abs().mean() < 0.6 and (model.expected(nothing) - 1).abs().mean() < 0.6
    assert torch.equal(model.expected(complete), model.regression(complete))
    assert model.open_gaussian.variances.sum() > 20 * model.conditional_gaussian.variances.sum()
    sample, timestep = noisy(num=200), torch.full((200,), 500)
    found = model(sample, timestep, class_labels=first).sample
    torch.testing.assert_close(found, model.open_gaussian(sample, timestep, model.open_regression(first)))


def test_complete_conditions_and_hidden_ones_are_what_they_are_without():
    (model, _, (complete, first, _)), (other, _, _) = make_open_model(), make_open_model(with_open=False)
    sample, timestep = noisy(num=200), torch.full((200,), 500)
    labels = torch.cat([complete[:100], first[:100]])
    found, expected = (one(sample, timestep, class_labels=labels).sample for one in (model, other))
    assert torch.equal(found[:100], expected[:100]) and not torch.allclose(found[100:], expected[100:], atol=0.1)
    hidden = model(sample, timestep, class_labels=labels, force_drop_ids=torch.ones(200, dtype=torch.bool)).sample
    torch.testing.assert_close(hidden, model.gaussian(sample, timestep))


def test_saved_and_loaded_it_expects_the_same_of_what_is_known(tmp_path):
    model, _, (_, first, _) = make_open_model()
    model.save_pretrained(tmp_path)
    loaded = UNet1DConditionModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.expected(first), model.expected(first))
    assert loaded.to(torch.bfloat16).open_gaussian.variances.dtype == torch.float32
