import torch
from torch import nn

from pdiff_hf.base_model import BaseModel


def test_mlp3_has_three_linear_layers_and_no_normalisation():
    model = BaseModel.imported("pdiff_hf.tasks.networks:mlp3").build()
    assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == 3
    assert sum(parameter.numel() for parameter in model.parameters()) == 2778
    assert not list(model.buffers())


def test_convnet3_takes_images_of_any_size():
    model = BaseModel.imported(
        "pdiff_hf.tasks.networks:convnet3", in_chans=3, channels=(4, 6, 8), num_classes=5
    ).build()
    assert model(torch.zeros(2, 3, 8, 8)).shape == model(torch.zeros(2, 3, 33, 21)).shape == (2, 5)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 3
    assert not list(model.buffers())
