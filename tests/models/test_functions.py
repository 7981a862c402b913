import pytest
import timm
import torch
from transformers import BertConfig, BertForSequenceClassification

from pdiff_hf.forward import forward_logits
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.models.functions import NetworkFunctions, analogies
from pdiff_hf.networks import convnet3, mlp3, resnet_mini, vit_mini


def small_bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=30, num_labels=3, **sizes))


class Dropped(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(48, 5), torch.nn.Dropout(), torch.nn.Linear(5, 3))


IMAGES = torch.randn(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LARGER = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(1, 30, (7, 5), generator=torch.Generator().manual_seed(0))
NETWORKS = {
    "perceptron": (lambda: mlp3(48, (5, 4), 3), IMAGES),
    "dropout": (Dropped, IMAGES),
    "convolutions": (lambda: convnet3(3, (4, 4), 3), LARGER),
    "batch norm": (lambda: resnet_mini(3, (4, 4, 4, 4), 3), LARGER),
    "attention": (lambda: vit_mini(3, 16, 8, 8, 1, 2, num_classes=3), LARGER),
    "text": (small_bert, TOKENS),
}


def make(name):
    torch.manual_seed(0)
    make_model, inputs = NETWORKS[name]
    model = make_model().eval()
    layout = ParameterLayout.from_model(model, "all", buffers=True)
    # Positive, as running variances have to be.
    noise = torch.rand(3, layout.num_parameters, generator=torch.Generator().manual_seed(1))
    return model, layout, layout.flatten(model) + 0.1 * noise, inputs


def by_loading(model, layout, vectors, inputs):
    found = []
    for vector in vectors:
        layout.load_into(model, vector)
        logits = forward_logits(model, inputs)
        found.append(logits - logits.mean(-1, keepdim=True))
    return torch.stack(found)


@pytest.mark.parametrize("name", NETWORKS)
def test_functions_are_the_logits_less_their_mean(name):
    model, layout, vectors, inputs = make(name)
    functions = NetworkFunctions(model, layout, inputs[:3])
    # 7 inputs are no whole number of batches.
    found = functions.of(vectors, inputs)
    with torch.no_grad():
        expected = by_loading(model, layout, vectors, inputs)
    assert functions.num_outputs == 3 and found.shape == (3, 7, 3)
    assert torch.allclose(found, expected, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_tensor_and_are_those_of_differences(name):
    model, layout, vectors, inputs = make(name)
    functions = NetworkFunctions(model, layout, inputs)
    activations = functions.prefix(inputs)
    vectors.requires_grad_()
    weights = torch.randn(3, 7, 3, generator=torch.Generator().manual_seed(2))
    (functions(vectors, activations) * weights).sum().backward()
    for spec in layout.tensors:
        reached = vectors.grad[:, spec.offset : spec.offset + spec.numel].abs().amax()
        # A key's bias, a linear layer's or convolution's before a norm: softmax and norms do not see them.
        assert reached > 0 or "bias" in spec.name or "position" in spec.name or "token_type" in spec.name
    step = 1e-2 * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(3)) * vectors.detach().abs()
    with torch.no_grad():
        ahead, behind = (functions(vectors + sign * step, activations) for sign in (1, -1))
    expected = ((ahead - behind) * weights).sum() / 2
    assert (vectors.grad * step).sum().item() == pytest.approx(expected.item(), rel=0.05, abs=1e-3)


def test_only_what_depends_on_the_tensors_is_computed():
    model, _, _, inputs = make("convolutions")
    layout = ParameterLayout.from_model(model, "head")
    functions = NetworkFunctions(model, layout, inputs)
    (features,) = functions.prefix(inputs)
    assert features.shape == (7, 4)
    assert torch.allclose(
        functions.of(layout.flatten(model)[None], inputs),
        by_loading(model, layout, layout.flatten(model)[None], inputs),
        atol=1e-6,
    )


def test_a_model_that_cannot_be_exported_is_computed_as_a_whole():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(48, 3)

        def forward(self, images):
            return self.linear(images.flatten(1)) if images.sum().item() > -1e9 else None

    model = Odd()
    layout = ParameterLayout.from_model(model)
    with pytest.warns(UserWarning, match="cannot be exported"):
        functions = NetworkFunctions(model, layout, IMAGES)
    vectors = layout.flatten(model) + torch.randn(2, layout.num_parameters)
    vectors.requires_grad_()
    found = functions(vectors, functions.prefix(IMAGES))
    found.square().sum().backward()
    assert torch.allclose(found, by_loading(model, layout, vectors.detach(), IMAGES), atol=1e-5)
    assert vectors.grad.abs().min() > 0


def test_inputs_that_the_model_does_not_take_are_refused():
    model, layout, _, _ = make("perceptron")
    with pytest.raises(ValueError, match=r"inputs that the base model takes, found \(3, 16, 16\) of torch.float32"):
        NetworkFunctions(model, layout, LARGER)


def test_timm_networks_are_functions_too():
    model = timm.create_model("test_vit", num_classes=3).eval()
    layout = ParameterLayout.from_model(model, "last_norms:1")
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    functions = NetworkFunctions(model, layout, images)
    found = functions.of(layout.flatten(model)[None], images)
    with torch.no_grad():
        assert torch.allclose(found, by_loading(model, layout, layout.flatten(model)[None], images), atol=1e-5)


def of_sets(*sets):
    """Probabilities `(K, 5, 2)` of networks that say surely which of five examples are in a set."""
    members = torch.tensor([[float(example in each) for example in range(5)] for each in sets])
    return torch.stack([1 - members, members], -1)


def test_analogies_of_sets_are_sets_of_other_sizes():
    networks = of_sets({0, 1}, {2, 3}, {1, 4}, {1, 2})
    rows = torch.tensor([[0, 1, 2], [0, 2, 3], [3, 3, 3]])
    assert torch.equal(analogies(networks, rows), of_sets({0, 2, 3}, {0, 1, 4}, {1, 2}))
    assert torch.equal(analogies(networks.transpose(0, 1), rows, 1).transpose(0, 1), analogies(networks, rows))


def test_analogies_are_probabilities():
    networks = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)
    found = analogies(networks, torch.tensor([[0, 1, 2], [3, 4, 5]]))
    assert torch.allclose(found.sum(-1), torch.ones(2, 5)) and found.min() == 0
    plain = networks[0] + networks[1] - networks[2]
    inside = (plain >= 0).all(-1)
    assert 0 < inside.sum() < 5 and torch.allclose(found[0][inside], plain[inside])
