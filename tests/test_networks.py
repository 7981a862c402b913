import pytest
import torch
from torch import nn

from pdiff_hf.base_model import BaseModel
from pdiff_hf.layout import ParameterLayout


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


@pytest.mark.parametrize(
    ("factory", "options", "num_parameters"),
    [
        ("resnet_mini", {}, 80_498),
        ("vit_mini", {"img_size": 28}, 62_170),
        ("convnext_mini", {}, 53_018),
    ],
)
def test_mini_networks_are_timm_classes_of_the_papers_size(factory, options, num_parameters):
    model = BaseModel.imported(f"pdiff_hf.tasks.networks:{factory}", in_chans=3, num_classes=10, **options).build()
    assert type(model).__module__.startswith("timm.models")
    size = options.get("img_size", 32)
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


def test_resnet_mini_takes_small_images_and_its_statistics_are_collected():
    model = BaseModel.imported("pdiff_hf.tasks.networks:resnet_mini", in_chans=1).build()
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    layout = ParameterLayout.from_model(model, "all", buffers=True)
    running = {name for name in model.state_dict() if "running" in name}
    assert len(running) == 30 and running <= set(layout.names)
