import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pdiff_hf.evaluation.baselines import uniform_soup
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.evaluation.matching import align_networks, match
from pdiff_hf.evaluation.permutations import permutation_spec
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.networks import mlp3
from pdiff_hf.tasks.config import BaseTrainingConfig
from pdiff_hf.tasks.image_classification import ImageClassification, ImageClassificationConfig
from pdiff_hf.tasks.zoo import train_networks

LAYOUT = ParameterLayout.from_model(mlp3())
NUM = 24


@pytest.fixture(scope="module")
def task():
    return ImageClassification(ImageClassificationConfig(train_size=400, val_size=100, test_size=300))


@pytest.fixture(scope="module")
def trained(task):
    """Vectors of perceptrons trained from initialisations of their own."""
    starts, found = [], {}
    for seed in range(NUM):
        torch.manual_seed(seed)
        starts.append(dict(mlp3().named_parameters()))

    def keep(places, step, tensors, losses):
        for row, place in enumerate(places):
            found[place] = LAYOUT.flatten({name: tensor[row] for name, tensor in tensors.items()})

    config = BaseTrainingConfig(epochs=30, learning_rate=1e-2, train_batch_size=40)
    train_networks(task, mlp3(), starts, range(NUM), config, keep)
    return torch.stack([found[place] for place in range(NUM)])


@pytest.fixture(scope="module")
def aligned(trained):
    return align_networks(trained, permutation_spec(mlp3(), LAYOUT))


def soup_accuracy(task, vectors):
    return ParameterEvaluator(mlp3(), LAYOUT, *task.arrays("test")).accuracy(uniform_soup(vectors)).item()


def test_soup_of_aligned_networks_works_and_of_others_does_not(task, trained, aligned):
    assert soup_accuracy(task, trained) < 0.4
    assert soup_accuracy(task, aligned) > 0.75


def test_networks_come_closer_and_nothing_moves_in_the_end(trained, aligned):
    before, after = ((rows - rows.mean(0)).square().sum(1).mean().sqrt() for rows in (trained, aligned))
    assert after < 0.85 * before
    assert torch.equal(match(aligned, aligned.double().mean(0), permutation_spec(mlp3(), LAYOUT)), aligned)
    # Weights move with their units and keep their values.
    assert torch.equal(aligned.sort(1).values, trained.sort(1).values)


def test_outputs_are_equal_to_rounding_and_predictions_equal(task, trained, aligned):
    images, _ = task.arrays("test")
    model = mlp3()
    largest = {torch.float64: 0.0, torch.float32: 0.0}
    for before, after in zip(trained, aligned, strict=True):
        for dtype in largest:
            outputs = []
            for vector in (before, after):
                LAYOUT.load_into(model.float(), vector)
                outputs.append(copy.deepcopy(model).to(dtype)(images.to(dtype)).detach())
            largest[dtype] = max(largest[dtype], (outputs[0] - outputs[1]).abs().max().item())
            assert torch.equal(outputs[0].argmax(1), outputs[1].argmax(1))
    # Sums of the same products in another order, with logits of about 30.
    assert largest[torch.float64] < 1e-12
    assert largest[torch.float32] < 1e-3


def exact_logits(vector, image):
    """Logits whose sums are rounded once, from the exact value: the order of the summands plays no part."""
    state = {name: tensor.double().tolist() for name, tensor in LAYOUT.unflatten(vector).items()}
    values = image.flatten().tolist()
    for layer in (1, 3, 5):
        # The product of two float32 is exact in float64, and fsum is exact.
        rows = zip(state[f"{layer}.weight"], state[f"{layer}.bias"], strict=True)
        sums = [math.fsum([bias, *(w * x for w, x in zip(row, values, strict=True))]) for row, bias in rows]
        values = torch.tensor(sums).relu().tolist() if layer < 5 else torch.tensor(sums).tolist()
    return values


def test_outputs_are_the_same_to_the_bit_where_sums_are_exact(task, trained, aligned):
    images, _ = task.arrays("test")
    assert not torch.equal(trained[1:4], aligned[1:4])
    for before, after in zip(trained[:4], aligned[:4], strict=True):
        for image in images[:5]:
            assert exact_logits(before, image) == exact_logits(after, image)


def test_order_of_hidden_units_has_no_influence(trained, aligned):
    shuffled = trained.clone()
    generator = torch.Generator().manual_seed(0)
    for vector in shuffled[1:]:
        order, state = torch.randperm(32, generator=generator), LAYOUT.unflatten(vector)
        for name in ("1.weight", "1.bias"):
            state[name].copy_(state[name][order])
        state["3.weight"].copy_(state["3.weight"][:, order])
    assert not torch.equal(shuffled, trained)
    assert torch.equal(align_networks(shuffled, permutation_spec(mlp3(), LAYOUT)), aligned)


class Written(nn.Module):
    """The chain of `convnet3` in a forward of one's own."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.head = nn.Conv2d(6, 5, 3), nn.Linear(20, 4)

    def forward(self, images):
        hidden = F.max_pool2d(F.relu(self.norm(self.first(images))), 2)
        hidden = torch.flatten(torch.tanh(self.second(hidden)), 1)
        return self.head(F.dropout(hidden, 0.1, self.training))


def test_networks_with_a_forward_of_their_own_are_understood():
    models = [Written().eval() for _ in range(5)]
    layout = ParameterLayout.from_model(models[0], buffers=True)
    spec = permutation_spec(models[0], layout)
    vectors = torch.stack([layout.flatten(model) for model in models])
    moved = align_networks(vectors, spec)
    assert not torch.equal(moved, vectors)
    images = torch.randn(7, 1, 8, 8, dtype=torch.float64)
    for model, vector in zip(models, moved, strict=True):
        expected = copy.deepcopy(model).double()(images)
        layout.load_into(model, vector)
        torch.testing.assert_close(model.double()(images), expected, atol=1e-12, rtol=0)
