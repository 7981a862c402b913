import copy
import warnings

import pytest
import timm
import torch
from torch import nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error
from transformers import ViTConfig, ViTForImageClassification

from pdiff_hf.evaluation import evaluator
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.forward import SplitForward, forward_logits
from pdiff_hf.layout import ParameterLayout
from pretended_device import NAME
from processes import launch_two

CLASSES = 10


def make_mlp(inputs=48):
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(inputs, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 12)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Linear(12, CLASSES)).eval()


def make_images(num, size=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num, 3, size, size, generator=generator)
    return images, torch.randint(CLASSES, (num,), generator=generator)


def perturbed(model, layout, num, seed=2):
    """Multiplicative noise, so running variances stay positive, and additive noise, so zeros move."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, num, layout.num_parameters, generator=generator)
    variances = torch.cat([torch.full((spec.numel,), spec.transform == "log") for spec in layout.tensors])
    return layout.flatten(model) * (0.2 * noise[0]).exp() + 0.05 * noise[1] * ~variances


@torch.no_grad()
def full_logits(model, layout, vectors, images):
    """The definition: load every network into a copy of the model and run it."""
    model = copy.deepcopy(model).eval()
    logits = []
    for vector in vectors:
        layout.load_into(model, vector)
        logits.append(forward_logits(model, images))
    return torch.stack(logits)


def evaluator_logits(parameter_evaluator, vectors):
    return torch.cat([logits for _, logits in parameter_evaluator.logits(vectors)])


def check_equal_to_full_forward(model, select, images, num=3, buffers=False, batch_size=2, **options):
    layout = ParameterLayout.from_model(model, select, buffers)
    vectors = perturbed(model, layout, num)
    labels = torch.zeros(len(images), dtype=torch.int64)
    partial = ParameterEvaluator(model, layout, images, labels, batch_size=batch_size, **options)
    expected = full_logits(model, layout, vectors, images)
    # Another batch size or vmap changes the order of float32 sums: rounding, relative to logits of this magnitude.
    scale = max(1.0, expected.abs().max().item())
    assert partial.is_partial
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * scale
    torch.testing.assert_close(evaluator_logits(partial, vectors), expected, atol=1e-5 * scale, rtol=0)
    return partial


SMALL_CONVNEXT = {"patch_size": 1, "depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
SMALL_VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}
FAST_MODELS = [
    ("resnet18", {}),
    ("vit_tiny_patch16_224", SMALL_VIT),
    ("convnext_tiny", SMALL_CONVNEXT),
    ("tf_efficientnet_lite0", {}),
]
FULL_SIZE_MODELS = [
    ("resnet50", {}),
    ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4}),
    ("convnext_tiny", {"patch_size": 1}),
]


@pytest.mark.parametrize(("name", "kwargs"), FAST_MODELS)
@pytest.mark.parametrize("networks_at_once", [1, 3])
def test_timm_logits_equal_the_full_forward(name, kwargs, networks_at_once):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, **kwargs)
    images, _ = make_images(3, size=32)
    partial = check_equal_to_full_forward(model, "last_norms:2", images, networks_at_once=networks_at_once)
    assert partial.num_dependent_nodes < partial.num_nodes / 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kwargs"), FULL_SIZE_MODELS)
def test_full_size_timm_logits_equal_the_full_forward(name, kwargs):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, **kwargs)
    images, _ = make_images(3, size=32)
    partial = check_equal_to_full_forward(model, "last_norms:2", images, num=2)
    assert partial.num_dependent_nodes < partial.num_nodes / 10


@pytest.mark.parametrize("networks_at_once", [1, 3])
def test_transformers_logits_equal_the_full_forward(networks_at_once):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        num_labels=CLASSES,
    )
    model = ViTForImageClassification(config)
    images, _ = make_images(3, size=32)
    check_equal_to_full_forward(model, "last_norms:2", images, networks_at_once=networks_at_once)


@pytest.mark.parametrize("networks_at_once", [1, 2, 7, None])
def test_whole_network_logits_equal_the_full_forward(networks_at_once):
    images, _ = make_images(7)
    check_equal_to_full_forward(make_mlp(), "all", images, num=17, networks_at_once=networks_at_once)


@pytest.mark.parametrize("networks_at_once", [1, 3])
def test_running_statistics_are_generated(networks_at_once):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES))
    images, _ = make_images(3)
    layout = ParameterLayout.from_model(model, "last_norms:1", buffers=True)
    assert {"1.running_mean", "1.running_var"} <= set(layout.names)
    check_equal_to_full_forward(model, "last_norms:1", images, buffers=True, networks_at_once=networks_at_once)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(48, 48), nn.Linear(48, 48)
        self.second.weight = self.first.weight
        self.head = nn.Linear(48, CLASSES)

    def forward(self, images):
        return self.head(self.second(self.first(images.flatten(1)).relu()))


def test_tied_weights_follow_the_generated_tensor():
    torch.manual_seed(0)
    images, _ = make_images(3)
    check_equal_to_full_forward(Tied(), ["first.weight"], images)


class DataDependent(nn.Module):
    """Python decides on a value, which torch.export refuses."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, CLASSES)

    def forward(self, images):
        logits = self.linear(images.flatten(1))
        return logits if images.mean() > 0 else -logits


def test_model_that_cannot_be_exported_costs_full_forwards_with_a_warning():
    torch.manual_seed(0)
    model = DataDependent()
    images, labels = make_images(4)
    layout = ParameterLayout.from_model(model)
    vectors = perturbed(model, layout, 17)
    with pytest.warns(UserWarning, match="DataDependent cannot be exported"):
        fallback = ParameterEvaluator(model, layout, images, labels)
    assert not fallback.is_partial
    expected = full_logits(model, layout, vectors, images)
    torch.testing.assert_close(evaluator_logits(fallback, vectors), expected, atol=1e-6, rtol=0)


class InPlaceOnPrefix(nn.Module):
    """Adds a generated tensor in place to an activation that all networks share."""

    def __init__(self):
        super().__init__()
        self.linear, self.bias = nn.Linear(48, CLASSES), nn.Parameter(torch.ones(CLASSES))

    def forward(self, images):
        return self.linear(images.flatten(1)).add_(self.bias)


def test_in_place_operations_do_not_write_into_kept_activations():
    torch.manual_seed(0)
    images, _ = make_images(4)
    check_equal_to_full_forward(InPlaceOnPrefix(), ["bias"], images, networks_at_once=1)


@pytest.mark.parametrize("max_cache_bytes", [0, 2000])
def test_results_do_not_depend_on_how_much_is_kept_nor_on_chunks(max_cache_bytes, monkeypatch):
    model = timm.create_model("convnext_tiny", num_classes=CLASSES, **SMALL_CONVNEXT)
    images, labels = make_images(5, size=32)
    layout = ParameterLayout.from_model(model, "last_norms:1")
    vectors = perturbed(model, layout, 5)
    expected = ParameterEvaluator(model, layout, images, labels, batch_size=2).predict(vectors)
    monkeypatch.setattr(evaluator, "CHUNK_BYTES", 1500)
    limited = ParameterEvaluator(model, layout, images, labels, batch_size=2, max_cache_bytes=max_cache_bytes)
    output = limited.predict(vectors)
    assert [start for start, _ in limited.logits(vectors)] != [0]
    kept = sum(tensor.nbytes for activations in limited._cache.values() for tensor in activations)
    assert kept <= max_cache_bytes
    assert torch.equal(output.predictions, expected.predictions)
    torch.testing.assert_close(output.nll, expected.nll, atol=1e-6, rtol=0)
    torch.testing.assert_close(output.ece, expected.ece, atol=1e-6, rtol=0)


def test_an_accelerator_takes_as_many_networks_at_once_as_its_memory_holds(request, monkeypatch):
    model = make_mlp()
    images, labels = make_images(6)
    layout = ParameterLayout.from_model(model, "*.bias")
    vectors = perturbed(model, layout, 64)
    monkeypatch.setattr(evaluator, "CHUNK_BYTES", 2000)
    here = ParameterEvaluator(model, layout, images, labels, batch_size=3)
    # The memory of the machine says nothing.
    monkeypatch.setattr(evaluator, "free_memory", lambda device: 2**30)
    assert [start for start, _ in here.logits(vectors)][:2] == [0, 4]
    expected, logits = here.predict(vectors), evaluator_logits(here, vectors)
    request.getfixturevalue("pretended")
    there = ParameterEvaluator(model, layout, images, labels, batch_size=3, device=NAME)
    (start, found), *rest = there.logits(vectors)
    assert not rest and start == 0
    torch.testing.assert_close(found.cpu(), logits, atol=1e-5, rtol=0)
    assert torch.equal(there.predict(vectors).predictions, expected.predictions)


def test_prefix_runs_once_per_image_batch(monkeypatch):
    model = make_mlp()
    images, labels = make_images(6)
    layout = ParameterLayout.from_model(model, "head")
    runs = []
    prefix = SplitForward.prefix
    monkeypatch.setattr(SplitForward, "prefix", lambda self, batch: runs.append(1) or prefix(self, batch))
    partial = ParameterEvaluator(model, layout, images, labels, batch_size=2)
    for _ in range(3):
        partial.accuracy(perturbed(model, layout, 4))
    assert len(runs) == 3


class FirstToken(nn.Module):
    """Only a small part of the last shared activation is needed by the generated head."""

    def __init__(self):
        super().__init__()
        self.linear, self.head = nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, images):
        return self.head(self.linear(images.flatten(2))[:, 0])


def make_convolutions():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten()]
    return nn.Sequential(*layers, nn.LazyLinear(CLASSES))


def test_activations_of_images_are_channels_last():
    model, (images, _) = make_convolutions(), make_images(4)
    model(images)
    partial = check_equal_to_full_forward(model, "2.weight", images)
    kept = [tensor for activations in partial._cache.values() for tensor in activations]
    assert [tensor.shape for tensor in kept] == [(2, 8, 4, 4)] * 2
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in kept)


def test_kernel_that_meets_one_pixel_is_a_matrix_which_no_network_copies():
    model, (images, _) = make_convolutions(), make_images(4, size=1)
    model(images)
    partial = check_equal_to_full_forward(model, "0.weight", images)
    constants = [slot for slot in partial._forward._slots if isinstance(slot, torch.Tensor)]
    assert (8, 8) in [tensor.shape for tensor in constants]
    assert all(tensor.is_contiguous() for tensor in constants)


def test_kept_activations_do_not_hold_larger_tensors():
    torch.manual_seed(0)
    images, _ = make_images(4)
    partial = check_equal_to_full_forward(FirstToken(), "head", images)
    kept = [tensor for activations in partial._cache.values() for tensor in activations]
    assert kept
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in kept)


def test_metrics_equal_torchmetrics():
    model = make_mlp()
    images, labels = make_images(60)
    layout = ParameterLayout.from_model(model)
    vectors = 3 * perturbed(model, layout, 6)
    output = ParameterEvaluator(model, layout, images, labels, batch_size=32).predict(vectors)
    logits = full_logits(model, layout, vectors, images)
    for row, network in enumerate(logits):
        accuracy = multiclass_accuracy(network, labels, CLASSES, average="micro")
        ece = multiclass_calibration_error(network, labels, CLASSES)
        nll = nn.functional.cross_entropy(network, labels)
        # Sums of 60 float32 terms in another order.
        torch.testing.assert_close(output.accuracy[row], accuracy, atol=1e-6, rtol=0)
        torch.testing.assert_close(output.ece[row], ece, atol=1e-5, rtol=0)
        torch.testing.assert_close(output.nll[row], nll, atol=1e-5, rtol=0)
        assert torch.equal(output.predictions[row], network.argmax(-1))


def test_single_metrics_are_columns_of_predict():
    model = make_mlp()
    images, labels = make_images(20)
    layout = ParameterLayout.from_model(model)
    vectors = perturbed(model, layout, 4)
    partial = ParameterEvaluator(model, layout, images, labels)
    output = partial.predict(vectors)
    for name in ("accuracy", "nll", "ece", "predictions"):
        assert torch.equal(getattr(partial, name)(vectors), getattr(output, name))


def test_network_with_nan_logits_is_wrong_everywhere():
    model = make_mlp()
    images, _ = make_images(20)
    layout = ParameterLayout.from_model(model)
    vectors = perturbed(model, layout, 2)
    vectors[1, -1] = float("nan")
    output = ParameterEvaluator(model, layout, images, torch.zeros(20, dtype=torch.int64)).predict(vectors)
    assert output.accuracy[1] == 0
    assert (output.predictions[1] == -1).all()
    assert output.nll[1].isnan() and output.nll[0].isfinite()


def test_model_is_neither_changed_nor_watched():
    model = make_mlp().train()
    before = copy.deepcopy(model.state_dict())
    images, labels = make_images(6)
    layout = ParameterLayout.from_model(model, "head")
    vectors = perturbed(model, layout, 2)
    partial = ParameterEvaluator(model, layout, images, labels)
    expected = evaluator_logits(partial, vectors)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(evaluator_logits(partial, vectors), expected)


def test_no_warning_for_a_model_that_can_be_exported():
    model = timm.create_model("resnet18", num_classes=CLASSES)
    images, labels = make_images(2, size=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ParameterEvaluator(model, ParameterLayout.from_model(model, "last_norms:1"), images, labels)


def test_bad_input_is_named():
    model = make_mlp()
    images, labels = make_images(6)
    layout = ParameterLayout.from_model(model, "head")
    with pytest.raises(ValueError, match=r"expected images .* found \(6, 3, 4, 4\) and \(5,\)"):
        ParameterEvaluator(model, layout, images, labels[:5])
    partial = ParameterEvaluator(model, layout, images, labels)
    with pytest.raises(ValueError, match=rf"expected vectors \(B, {layout.num_parameters}\).*found \(2, 7\)"):
        partial.accuracy(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"expected labels in \[0, 10\).*found \[0, 10\]"):
        ParameterEvaluator(model, layout, images, torch.tensor([0, 1, 2, 3, 4, 10]))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(48, CLASSES), nn.Linear(4, 4)

    def forward(self, images):
        return self.used(images.flatten(1))


def test_selection_without_influence_on_the_logits_is_an_error():
    model = Unused()
    images, labels = make_images(2)
    with pytest.raises(ValueError, match="the model uses none of"):
        ParameterEvaluator(model, ParameterLayout.from_model(model, ["unused.*"]), images, labels)


TWO_PROCESSES = """
import sys
import torch
from accelerate import Accelerator
from pdiff_hf.evaluation.evaluator import ParameterEvaluator

accelerator = Accelerator()
assert accelerator.num_processes == 2
model, layout, images, labels, vectors = torch.load(sys.argv[1], weights_only=False)
evaluator = ParameterEvaluator(model, layout, images, labels, batch_size=8, accelerator=accelerator)
computed = []
chunks = evaluator._chunk_logits
evaluator._chunk_logits = lambda chunk, *rest: (computed.append(len(chunk)), chunks(chunk, *rest))[1]
outputs = [evaluator.predict(vectors), evaluator.predict(vectors[:1])]
torch.save((sum(computed), outputs), f"{sys.argv[1]}.{accelerator.process_index}")
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_share_the_networks_and_get_the_same_results(tmp_path):
    model = make_mlp()
    images, labels = make_images(20)
    layout = ParameterLayout.from_model(model)
    vectors = perturbed(model, layout, 7)
    torch.save((model, layout, images, labels, vectors), tmp_path / "setting")
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    code, out = launch_two(tmp_path / "script.py", tmp_path / "setting")
    assert code == 0, out
    evaluator = ParameterEvaluator(model, layout, images, labels, batch_size=8)
    computed = []
    for rank in range(2):
        number, outputs = torch.load(tmp_path / f"setting.{rank}", weights_only=False)
        computed.append(number)
        for rows, output in zip((vectors, vectors[:1]), outputs, strict=True):
            expected = evaluator.predict(rows)
            assert torch.equal(output.predictions, expected.predictions)
            assert torch.equal(output.losses, expected.losses)
            torch.testing.assert_close(output.ece, expected.ece)
    # Seven networks, of which one process computes four, and one network that is computed once.
    assert sorted(computed) == [3, 5]


def test_a_network_is_judged_by_the_labels_that_it_fits_best():
    """Three linear classifiers of one-hot images: of the labels as they are, of permuted ones, and of mostly those."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False))
    layout = ParameterLayout.from_model(model)
    labels = torch.arange(4).repeat(5)
    swapped = torch.tensor([1, 0, 3, 2])[labels]
    images = torch.eye(4)[labels].view(-1, 1, 2, 2)
    evaluator = ParameterEvaluator(
        model, layout, images, labels, populations={"plain": labels, "swapped": swapped}, batch_size=7
    )
    half = torch.eye(4)[:, [1, 0, 2, 2]]
    vectors = torch.stack([torch.eye(4), torch.eye(4)[:, [1, 0, 3, 2]], half]).flatten(1)
    output = evaluator.predict(vectors, keep=torch.tensor([0, 6, 7, 19]))
    assert evaluator.populations == ("plain", "swapped")
    assert output.population.tolist() == [0, 1, 1]
    assert output.accuracy.tolist() == [1, 1, 0.75]
    assert torch.equal(output.right[2], output.predictions[2] == swapped)
    alone = ParameterEvaluator(model, layout, images, swapped, batch_size=7).predict(vectors[1:])
    for name in ("nll", "ece", "losses"):
        torch.testing.assert_close(getattr(output, name)[1:], getattr(alone, name))
    logits = torch.cat([chunk for _, chunk in evaluator.logits(vectors)])
    assert torch.equal(output.logits, logits[:, [0, 6, 7, 19]])
    assert evaluator.predict(vectors).logits.shape == (3, 0, 4)
    order = torch.arange(20).flip(0)
    assert evaluator.reordered(order).predict(vectors).population.tolist() == [0, 1, 1]


def test_a_network_of_which_the_labels_are_known_is_judged_by_these():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    layout, labels = ParameterLayout.from_model(model), torch.arange(4).repeat(5)
    images = torch.eye(4)[labels].view(-1, 1, 2, 2)
    tasks = {"0": (labels == 0).long(), "0+1": (labels < 2).long(), "3": (labels == 3).long()}
    vectors, rows = torch.randn(6, 10), torch.tensor([2, 0, 1, 1, 0, 2])
    evaluator = ParameterEvaluator(model, layout, images, labels, populations=tasks, rows=rows, batch_size=7)
    output = evaluator.predict(vectors, population=rows)
    assert torch.equal(output.population, rows) and torch.equal(
        evaluator.score(vectors, population=rows), output.score
    )
    for row, task in enumerate(rows.tolist()):
        alone = ParameterEvaluator(model, layout, images, [*tasks.values()][task], batch_size=7)
        expected = alone.predict(vectors[row : row + 1])
        for name in ("accuracy", "nll", "ece", "losses", "predictions"):
            torch.testing.assert_close(getattr(output, name)[row], getattr(expected, name)[0])
    assert torch.equal(evaluator.predictions(vectors), output.predictions)
    # Half of these networks fit other labels better.
    guessing = ParameterEvaluator(model, layout, images, labels, populations=tasks, batch_size=7)
    assert guessing.accuracy(vectors).mean() > output.accuracy.mean() + 0.05
    with pytest.raises(ValueError, match="expected the task of every network, by whose labels alone it is judged"):
        evaluator.accuracy(vectors)


def test_labels_of_a_population_that_do_not_fit_are_named():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"labels \(3,\) of every population, found \{'a': \(2,\)\}"):
        ParameterEvaluator(
            model,
            ParameterLayout.from_model(model),
            torch.zeros(3, 1, 2, 2),
            torch.zeros(3).long(),
            populations={"a": torch.zeros(2)},
        )
