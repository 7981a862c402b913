import pytest
import torch
from diffusers.training_utils import EMAModel

from pdiff_hf import make_unet_1d


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_output_has_the_shape_of_the_input(levels):
    unet = make_unet_1d(4, 8, block_out_channels=(16,) * levels)
    assert unet(torch.randn(3, 4, 8), torch.tensor([0, 500, 999])).sample.shape == (3, 4, 8)


def test_training_step_gives_every_parameter_a_gradient():
    torch.manual_seed(0)
    unet = make_unet_1d(4, 8, block_out_channels=(16, 32))
    unet(torch.randn(2, 4, 8), torch.tensor([3, 700])).sample.square().mean().backward()
    assert [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_timestep_matters():
    torch.manual_seed(0)
    unet = make_unet_1d(4, 8, block_out_channels=(16, 32)).eval()
    sample = torch.randn(1, 4, 8)
    with torch.no_grad():
        assert not torch.allclose(unet(sample, 0).sample, unet(sample, 999).sample, atol=1e-3)


def test_ema_step_moves_towards_the_weights():
    torch.manual_seed(0)
    unet = make_unet_1d(4, 8, block_out_channels=(16, 16))
    ema = EMAModel(unet.parameters(), decay=0.9, use_ema_warmup=True, power=0.75)
    before = next(unet.parameters()).clone()
    with torch.no_grad():
        next(unet.parameters()).add_(1)
    for _ in range(3):
        ema.step(unet.parameters())
    assert (ema.shadow_params[0] > before).all() and (ema.shadow_params[0] <= before + 1).all()


def test_length_must_be_divisible_by_the_downsampling_factor():
    with pytest.raises(ValueError, match="divisible by 4 for 3 resolutions, got 6"):
        make_unet_1d(4, 6, block_out_channels=(16, 16, 16))


def test_width_must_be_divisible_by_8():
    with pytest.raises(ValueError, match="divisible by 8"):
        make_unet_1d(4, 8, block_out_channels=(12,))
