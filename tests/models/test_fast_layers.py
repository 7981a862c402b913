import copy

import pytest
import torch
from torch import nn

from pdiff_hf import make_unet_1d
from pdiff_hf.models.autoencoder_pdiff import PatchConv1d, PatchConvTranspose1d, PositionPool, PositionSpread
from pdiff_hf.models.unet_1d import FastMish, ShortConv1d, use_fast_layers

# Sums of some hundred float32 products in another order.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


def gradients(module, inputs):
    inputs = inputs.clone().requires_grad_()
    output = module(inputs)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output * weights).sum().backward()
    return [output, inputs.grad, *(parameter.grad for parameter in module.parameters())]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)


@pytest.mark.parametrize(
    ("taps", "stride", "padding", "bias"), [(5, 1, 2, True), (3, 2, 1, True), (1, 1, 0, False), (4, 2, 0, True)]
)
@pytest.mark.parametrize("length", [4, 7])
def test_short_convolution_equals_the_librarys(taps, stride, padding, bias, length):
    torch.manual_seed(0)
    plain = nn.Conv1d(6, 8, taps, stride, padding, bias=bias)
    short = ShortConv1d(6, 8, taps, stride, padding, bias=bias)
    short.load_state_dict(plain.state_dict())
    inputs = torch.randn(3, 6, length)
    assert_same(gradients(short, inputs), gradients(plain, inputs))


def test_mish_equals_the_librarys():
    inputs = torch.cat([torch.linspace(-30, 30, 2001), torch.tensor([-1e4, -100.0, 100.0, 1e4])])
    for one, other in zip(gradients(FastMish(), inputs), gradients(nn.Mish(), inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_denoiser_with_fast_layers_is_the_same_denoiser():
    torch.manual_seed(0)
    plain = make_unet_1d(8, 4, (16, 16))
    short = copy.deepcopy(plain)
    use_fast_layers(short)
    assert {ShortConv1d, FastMish} <= {type(module) for module in short.modules()}
    assert list(short.state_dict()) == list(plain.state_dict())
    latents, timesteps = torch.randn(5, 8, 4), torch.arange(5)
    found, expected = (unet(latents, timesteps).sample for unet in (short, plain))
    torch.testing.assert_close(found, expected, **TOLERANCE)
    for sample in (found, expected):
        sample.square().mean().backward()
    assert_same([p.grad for p in short.parameters()], [p.grad for p in plain.parameters()])


@pytest.mark.parametrize("kind", [lambda: ShortConv1d(6, 8, 3, padding=1), FastMish])
def test_on_an_accelerator_a_layer_is_one_operation_with_the_same_result(pretended, kind):
    layer, inputs = kind(), torch.randn(3, 6, 4)
    expected = gradients(layer, inputs)
    layer, inputs = layer.to("pretend"), inputs.to("pretend").requires_grad_()
    pretended.clear()
    output = layer(inputs)
    assert pretended.launches.total() == 1
    torch.testing.assert_close(output.detach().cpu(), expected[0].detach(), **TOLERANCE)


def test_autocast_gives_its_type():
    convolution = ShortConv1d(6, 8, 3, padding=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = convolution(torch.randn(2, 6, 4))
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert convolution.weight.grad.dtype == torch.float32


def test_patches_equal_convolutions():
    torch.manual_seed(0)
    for plain, patches, shape in (
        (nn.Conv1d(2, 5, 4, 4), PatchConv1d(2, 5, 4, 4), (3, 2, 12)),
        (nn.ConvTranspose1d(5, 2, 4, 4), PatchConvTranspose1d(5, 2, 4, 4), (3, 5, 3)),
    ):
        patches.load_state_dict(plain.state_dict())
        inputs = torch.randn(shape)
        assert_same(gradients(patches, inputs), gradients(plain, inputs))


def test_positions_are_pooled_and_spread_by_groups_of_neighbours():
    pool, spread = PositionPool(1, 5, 3), PositionSpread(1, 5, 3)
    for layer in (pool, spread):
        nn.init.ones_(layer.weight)
    assert pool(torch.tensor([[[1.0, 2, 3, 4, 5]]])).tolist() == [[[3, 7, 5]]]
    assert spread(torch.tensor([[[1.0, 2, 3]]])).tolist() == [[[1, 1, 2, 2, 3]]]
