import copy
import os
import subprocess
import sys
from functools import partial

import pytest
import timm
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from pdiff_hf.forward import FullForward
from pdiff_hf.networks import resnet_mini, vit_mini
from pdiff_hf.structure import hash_of_structure

IMAGES = torch.zeros(4, 3, 16, 16)
SCALE = 2.0


def structure(model, inputs=IMAGES):
    return hash_of_structure(FullForward(model, torch.device("cpu")), inputs)


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(784, 2)
    )


def changed(change):
    model = plain()
    change(model)
    return model


def bert(**options):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertForSequenceClassification(BertConfig(vocab_size=30, **(sizes | options)))


def double(module, inputs, output):
    return 2 * output


def by_scale(module, inputs, output):
    return SCALE * output


def shift(module, inputs):
    return tuple(x + 1 for x in inputs)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


class Own(nn.Module):
    factor = 3

    def __init__(self, scale=1.0):
        super().__init__()
        self.linear, self.scale = nn.Linear(768, 2), scale

    def forward(self, images):
        return self.helper(self.linear(images.flatten(1))) * self.scale

    def helper(self, logits):
        return logits * SCALE * self.factor


def tied():
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 768), nn.Linear(768, 768))
    model[2].weight = model[1].weight
    return model


@pytest.mark.parametrize(
    "make",
    [
        plain,
        tied,
        Own,
        lambda: resnet_mini(3, (4, 4, 4, 4), 3),
        lambda: vit_mini(3, 16, 8, 8, 1, 2, num_classes=3),
        lambda: timm.create_model("convnext_atto", num_classes=3),
        bert,
        lambda: changed(lambda model: model[0].register_forward_hook(double)),
        lambda: changed(lambda model: nn.utils.parametrizations.weight_norm(model[0])),
    ],
)
def test_networks_that_differ_in_values_only_have_one_structure(make):
    first, second = make(), make()
    assert structure(first) == structure(second) == structure(copy.deepcopy(first)) is not None
    # Nor does it matter how many inputs there are, and whether the network was trained.
    assert structure(second.train(), IMAGES[:2]) == structure(first)


CHANGES = {
    "stride": lambda model: setattr(model[0], "stride", (2, 2)),
    "padding": lambda model: setattr(model[0], "padding_mode", "circular"),
    "eps": lambda model: setattr(model[1], "eps", 1e-3),
    "activation": lambda model: model.__setitem__(2, nn.GELU()),
    "attribute of its own": lambda model: setattr(model, "anything", 1),
    "shape": lambda model: model.__setitem__(5, nn.Linear(784, 3)),
    "no bias": lambda model: model.__setitem__(5, nn.Linear(784, 2, bias=False)),
    "type": lambda model: model.half(),
    "type of a buffer": lambda model: setattr(model[1], "running_mean", model[1].running_mean.double()),
    "strides": lambda model: setattr(model[5], "weight", nn.Parameter(torch.zeros(784, 2).T)),
    "no statistics": lambda model: model.__setitem__(1, nn.BatchNorm2d(4, track_running_stats=False)),
    "hook": lambda model: model[0].register_forward_hook(double),
    "hook before": lambda model: model[0].register_forward_pre_hook(shift),
    "hook with a global": lambda model: model[0].register_forward_hook(by_scale),
    "hook with an argument": lambda model: model[0].register_forward_hook(partial(double)),
    "parametrization": lambda model: nn.utils.parametrize.register_parametrization(model[0], "weight", Halved()),
    "function of one module": lambda model: setattr(model[2], "forward", torch.tanh),
    "another module": lambda model: model.append(nn.Identity()),
}


def test_every_difference_is_another_structure():
    hashes = {"none": structure(plain())}
    hashes |= {name: structure(changed(change)) for name, change in CHANGES.items()}
    assert None not in hashes.values()
    assert len(set(hashes.values())) == len(CHANGES) + 1


def test_which_tensors_are_one_is_told():
    untied = tied()
    untied[2].weight = nn.Parameter(torch.zeros(768, 768))
    assert structure(tied()) != structure(untied)


@pytest.mark.parametrize(
    "option", [{"hidden_act": "relu"}, {"attn_implementation": "eager"}, {"layer_norm_eps": 1e-5}]
)
def test_configuration_of_transformers_is_told(option):
    tokens = torch.ones(2, 5, dtype=torch.int64)
    assert None is not structure(bert(), tokens) != structure(bert(**option), tokens) is not None


def test_inputs_are_told_but_for_their_number():
    others = [IMAGES[:, :, :8], IMAGES.double(), IMAGES.contiguous(memory_format=torch.channels_last)]
    hashes = {structure(plain(), images) for images in (IMAGES, *others)}
    assert len(hashes) == 4


def test_settings_of_torch_are_told(monkeypatch):
    before = structure(plain())
    with torch.autocast("cpu"):
        assert structure(plain()) != before
    monkeypatch.setattr(torch, "__version__", "1.0")
    assert structure(plain()) != before


def test_code_of_ones_own_is_told_with_what_it_names(monkeypatch):
    before = structure(Own())
    assert structure(Own(2.0)) != before
    monkeypatch.setitem(globals(), "SCALE", 5.0)
    assert structure(Own()) != before
    monkeypatch.undo()
    monkeypatch.setattr(Own, "factor", 4)
    assert structure(Own()) != before
    monkeypatch.undo()
    monkeypatch.setattr(Own, "helper", lambda self, logits: logits)
    assert structure(Own()) != before
    monkeypatch.undo()
    assert structure(Own()) == before


def test_class_of_a_library_that_was_changed_is_told(monkeypatch):
    before = structure(plain())
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x * SCALE)
    assert structure(plain()) not in (before, None)


def closure(value):
    return lambda module, inputs, output: output * value


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "scale", torch.ones(1)),
        lambda model: setattr(model, "scales", {"first": [torch.ones(1)]}),
        lambda model: setattr(model, "anything", object()),
        lambda model: model[0].register_forward_hook(closure(torch.ones(1))),
        lambda model: model[0].register_forward_hook(lambda *_: sys.maxsize),
    ],
)
def test_what_cannot_be_told_has_no_structure(change):
    model = plain()
    change(model)
    assert structure(model) is None


class Subclass(torch.Tensor):
    pass


def test_tensors_of_other_classes_have_no_structure():
    model = plain()
    assert hash_of_structure(model, IMAGES.as_subclass(Subclass)) is None
    model[1].running_mean = model[1].running_mean.as_subclass(Subclass)
    assert hash_of_structure(model, IMAGES) is None


def test_what_is_too_deep_has_no_structure():
    model, attribute = plain(), []
    for _ in range(1000):
        attribute = [attribute]
    model.anything = attribute
    assert hash_of_structure(model, IMAGES) is None


def test_whose_a_part_is_is_told():
    def nest(*layers):
        return nn.Sequential(nn.Sequential(*layers[:-1]), layers[-1]), nn.Sequential(nn.Sequential(*layers))

    first, second = nest(nn.ReLU(), nn.Tanh())
    assert None is not hash_of_structure(first, IMAGES) != hash_of_structure(second, IMAGES) is not None


def test_hooks_of_all_modules_have_no_structure():
    hook = nn.modules.module.register_module_forward_hook(double)
    try:
        assert structure(plain()) is None
    finally:
        hook.remove()


def test_closures_are_told():
    hooks = [closure(1.0), closure(1.0), closure(2.0)]
    hashes = [structure(changed(lambda model, hook=hook: model[0].register_forward_hook(hook))) for hook in hooks]
    assert None is not hashes[0] == hashes[1] != hashes[2] is not None


CODE = """
import torch
from torch import nn
from pdiff_hf.structure import hash_of_structure
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 2))
model.names = {"a", "b", "c"}
found = hash_of_structure(model, torch.zeros(4, 3, 16, 16))
print(found)
"""


def test_another_process_finds_the_same():
    found = set()
    # Not in this one, in which other tests may have registered a device: nn.Module has a method for it then.
    for seed, first in (("1", ""), ("2", "import timm")):
        run = subprocess.run(
            [sys.executable, "-c", first + CODE],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        found.add(run.stdout)
    assert len(found) == 1 and found != {"None\n"}
