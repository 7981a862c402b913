"""The forward pass on CUDA tensors without values, which need no GPU: what is exported, and what is computed there."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers import BertConfig, BertForSequenceClassification

from pdiff_hf import exported
from pdiff_hf.forward import FullForward, SplitForward
from pdiff_hf.networks import resnet_mini, vit_mini

aten = torch.ops.aten


def small_bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=30, num_labels=3, **sizes))


# The network, an input, the generated tensors, and operations with them.
NETWORKS = {
    "resnet": (
        lambda: resnet_mini(3, (4, 4, 4, 4), 3),
        torch.randn(1, 3, 16, 16),
        ["layer4.0.bn2.weight", "layer2.0.bn2.bias"],
        {aten.native_batch_norm.default, aten.relu.default, aten.linear.default},
    ),
    "vit": (
        lambda: vit_mini(3, 16, 8, 8, 1, 2, num_classes=3),
        torch.randn(1, 3, 16, 16),
        ["blocks.0.norm2.weight", "head.weight"],
        {aten.layer_norm.default, aten.gelu.default, aten.linear.default},
    ),
    "bert": (
        small_bert,
        torch.ones(1, 7, dtype=torch.int64),
        ["bert.encoder.layer.0.output.LayerNorm.weight", "classifier.weight"],
        {aten.layer_norm.default, aten.tanh.default, aten.linear.default},
    ),
}


def on_cuda(mode, tensor):
    return mode.from_tensor(tensor).to("cuda")


def make(name, mode):
    full = FullForward(NETWORKS[name][0](), torch.device("cpu"))
    with mode:
        for module in full.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[key] = nn.Parameter(on_cuda(mode, parameter), requires_grad=False)
            for key, buffer in module._buffers.items():
                module._buffers[key] = on_cuda(mode, buffer)
    return full


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_exported_once_and_computed_at_once_on_cuda(name, monkeypatch):
    monkeypatch.setattr(exported, "_IN_MEMORY", type(exported._IN_MEMORY)())
    _, inputs, names, operations = NETWORKS[name]
    mode = FakeTensorMode()
    networks = make(name, mode), make(name, mode)
    for full, size in zip(networks, (8, 6), strict=True):
        with mode:
            batch = on_cuda(mode, inputs).repeat(size, *[1] * (inputs.ndim - 1))
            split = SplitForward(full, batch, names)
            activations = split.prefix(batch)
            own = {key: full.model.get_parameter(key) for key in names}
            many = {key: tensor.expand(5, *tensor.shape) for key, tensor in own.items()}
            logits = torch.func.vmap(split.tail, in_dims=(None, 0))(activations, many)
            assert split.tail(activations, own).shape == (size, 3)
        assert (logits.shape, logits.device.type) == ((5, size, 3), "cuda")
        assert all(tensor.device.type == "cuda" for tensor in activations)
        found = {node.target for node in split._module[2].graph.nodes if node.op == "call_function"}
        assert operations <= found
    # With what cuDNN normalises, up to so many images.
    ((graph,),) = exported._IN_MEMORY.values()
    assert graph.batch_sizes == range(2, 2**16 if name == "resnet" else exported.END)
