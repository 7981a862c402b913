import copy

import pytest
import timm
import torch
from torch import nn

from pdiff_hf.evaluation.batch_norm import STATISTICS, BatchNormEstimator, _BatchStatistics, dependent_batch_norms
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.layout import ParameterLayout


class Branching(nn.Module):
    """Two branches, of which only one depends on `first`; its BatchNorm is used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.norm, self.other_norm, self.last_norm = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm1d(4)
        self.plain_norm = nn.BatchNorm1d(4, track_running_stats=False)
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        x = self.norm(self.norm(self.first(x)).relu()) * self.other_norm(self.other(x))
        return self.head(self.plain_norm(self.last_norm(x.mean((2, 3)))))


class NotExportable(Branching):
    def forward(self, x):
        return super().forward(x) * (2.0 if x.sum().item() > 1e9 else 1.0)


def make_images(num=20, size=8):
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(1)) * 3


def make_model(kind):
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=10).eval() if kind == "resnet18" else kind().eval()


def perturbed(model, layout, num=2):
    return layout.flatten(model) + 0.5 * torch.rand(
        num, layout.num_parameters, generator=torch.Generator().manual_seed(2)
    )


@torch.no_grad()
def reference(model, layout, vector, names, batches):
    """The definition: the layers in train mode with `momentum=None`."""
    model = copy.deepcopy(model).eval()
    layout.load_into(model, vector)
    for name in names:
        layer = model.get_submodule(name)
        layer.reset_running_stats()
        layer.training, layer.momentum = True, None
    for batch in batches:
        model(batch)
    return model.eval()


CASES = [("resnet18", "layer4.1.bn1.*"), (Branching, "first.*"), (NotExportable, "first.*")]


@pytest.mark.filterwarnings("ignore:NotExportable cannot be exported")
@pytest.mark.parametrize(("kind", "select"), CASES)
def test_statistics_are_those_of_train_mode(kind, select):
    model, images = make_model(kind), make_images(size=32 if kind == "resnet18" else 8)
    layout = ParameterLayout.from_model(model, select)
    vectors = perturbed(model, layout)
    estimator = BatchNormEstimator(model, layout, images, batch_size=8)
    extended = estimator.extend(vectors)
    names = [name.removesuffix(".num_batches_tracked") for name in estimator.names if "num_batches" in name]
    for vector, own in zip(vectors, extended, strict=True):
        expected = reference(model, layout, vector, names, [images[:8], images[8:16]])
        # Relative to float32 sums over a batch.
        torch.testing.assert_close(own, estimator.layout.flatten(expected), atol=1e-5, rtol=1e-5)
        loaded = copy.deepcopy(model)
        missing, unexpected = loaded.load_state_dict(estimator.state_dict(own), strict=False)
        assert unexpected == [] and not set(missing) & {*layout.names, *estimator.names}
        torch.testing.assert_close(loaded(images), expected(images), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(extended[0, layout.num_parameters :], extended[1, layout.num_parameters :])


def test_extended_networks_are_evaluated_with_their_statistics():
    model, images = make_model(Branching), make_images()
    layout = ParameterLayout.from_model(model, "first.*")
    estimator = BatchNormEstimator(model, layout, images, batch_size=8)
    extended = estimator.extend(perturbed(model, layout))
    evaluator = ParameterEvaluator(model, estimator.layout, images, torch.zeros(len(images), dtype=torch.int64))
    (_, logits), *_ = evaluator.logits(extended)
    estimator.layout.load_into(model, extended[1])
    torch.testing.assert_close(logits[1], model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "select", "buffers", "expected"),
    [
        ("resnet18", "last_norms:2", False, ["layer4.1.bn2"]),
        ("resnet18", "layer4.1.bn2.*", False, []),
        (Branching, "first.*", False, ["norm", "last_norm"]),
        (Branching, "other.*", False, ["other_norm", "last_norm"]),
        (Branching, ["first.*", "last_norm.*"], True, ["norm"]),
        (Branching, "head.*", False, []),
    ],
)
def test_layers_whose_input_depends(kind, select, buffers, expected):
    model = make_model(kind)
    layout = ParameterLayout.from_model(model, select, buffers)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert dependent_batch_norms(model, layout, make_images(2, 32)) == expected
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_nothing_to_re_estimate_is_bad_input():
    model = make_model(Branching)
    with pytest.raises(ValueError, match="BatchNorm layers whose statistics depend on the generated tensors"):
        BatchNormEstimator(model, ParameterLayout.from_model(model, "head.*"), make_images())


def test_layers_are_found_where_cudnn_computes_them():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    called = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), FakeTensorMode(), torch.device("cuda"):
        layer, images = nn.BatchNorm2d(4).eval(), torch.empty(8, 4, 5, 5)
        statistics = {name: getattr(layer, name) for name in STATISTICS}
        with Names(), _BatchStatistics(statistics) as seen:
            assert layer(images).shape == images.shape
    assert "aten::cudnn_batch_norm" in called or not torch.backends.cuda.is_built()
    assert {name: [value.shape for value in values] for name, values in seen.statistics.items()} == {
        name: [(4,)] for name in STATISTICS
    }
