"""What a step of training costs an accelerator's host: operations that it launches, waits, copies.

One operation on the pretended device counts as one launch; a few, such as the backward pass of a layer norm, are two
kernels on CUDA, and those on lists of tensors are one for a hundred tensors or so.
"""

import itertools

import pytest
import torch

from factories import make_autoencoder, make_dataset, make_layout, make_vectors
from pdiff_hf.models import normalizer
from pdiff_hf.models.auto import AUTOENCODER, DENOISER
from pdiff_hf.training import batches
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.batches import GlobalBatch, upload
from pdiff_hf.training.denoiser import train_denoiser
from pdiff_hf.training.logs import LossHistory
from pdiff_hf.training.loop import make_accelerator

pytestmark = pytest.mark.timeout(120)
NUM_ROWS = 160
# Fewer than between two logs.
NUM_STEPS = 6


@pytest.fixture
def steps(pretended, monkeypatch):
    """Launches, waits and copies to the device of every step but the first two, up to a log."""
    totals, add = [], LossHistory.add

    def noting(self, *args):
        add(self, *args)
        totals.append([counter.total() for counter in (pretended.launches, pretended.waits, pretended.to_device)])

    monkeypatch.setattr(LossHistory, "add", noting)

    def between():
        # The first step creates the optimiser's state.
        return [
            [after - before for before, after in zip(*pair, strict=True)] for pair in itertools.pairwise(totals[1:])
        ]

    return between


def train(folder, shape, num_classes=None, **options):
    config = DENOISER.validate({"steps": NUM_STEPS, "validate": "none", "lr_warmup_steps": 0, **options})
    accelerator = make_accelerator(config, folder)
    latents = torch.randn(NUM_ROWS, *shape, generator=torch.Generator().manual_seed(0)).to(accelerator.device)
    conditions = None
    if num_classes is not None:
        conditions = torch.randn(NUM_ROWS, num_classes, generator=torch.Generator().manual_seed(1))
        latents[:, 0] += 3 * conditions[:, :1].to(latents.device)
        conditions = conditions.to(latents.device)
    return train_denoiser(accelerator, latents, {"run": range(NUM_ROWS)}, config, folder, conditions=conditions)[0]


@pytest.mark.parametrize("shape", [(32, 1), (32, 4), (128, 1)])
def test_a_step_of_the_default_denoiser_is_150_launches_and_one_copy(steps, tmp_path, shape):
    train(tmp_path, shape)
    assert len(steps()) == NUM_STEPS - 2
    for launches, waits, copies in steps():
        assert launches <= 150 and waits == 0 and copies == 1


def test_a_step_of_a_denoiser_of_conditions_is_200_launches_and_one_copy(steps, tmp_path):
    assert train(tmp_path, (32, 1), num_classes=10).regression is not None
    assert all(launches <= 200 and waits == 0 and copies == 1 for launches, waits, copies in steps())


def test_a_step_of_the_other_denoiser_launches_plain_layers(steps, tmp_path):
    train(tmp_path, (32, 4), kind="unet_1d")
    # By the layers that are fast on a CPU it is 901.
    assert all(launches <= 210 and waits == 0 for launches, waits, _ in steps())


def test_a_step_of_the_papers_autoencoder_is_200_launches(steps, tmp_path, monkeypatch):
    """As of D = 300 288: the noise of a batch is too much for the CPU, that of a row fills a block."""
    size = make_layout().num_parameters
    monkeypatch.setattr(batches, "MAX_HOST_VALUES", 49 * size)
    monkeypatch.setattr(batches, "BLOCK", size)
    options = {"preset": "paper", "latent_channels": 16, "latent_length": 1, "allow_poor_reconstruction": True}
    config = AUTOENCODER.validate({"steps": NUM_STEPS, "train_batch_size": 50, **options})
    train_autoencoder(make_dataset(tmp_path, 60), tmp_path / "autoencoder", config)
    assert all(150 < launches <= 200 and waits == 0 and copies == 1 for launches, waits, copies in steps())


def test_an_accelerator_takes_a_batch_of_long_vectors_in_one_piece(pretended, monkeypatch):
    """The CPU computes parts of it twice; the loss and its gradients are the same."""
    monkeypatch.setattr(normalizer, "BLOCK_VALUES", 4 * make_layout().num_parameters)
    autoencoder, vectors = make_autoencoder(), make_vectors(30)
    for layer in (autoencoder.encoder[-1], autoencoder.decoder[-1]):
        torch.nn.init.normal_(layer.weight, std=0.1)
    noise = torch.randn(vectors.shape)
    results = []
    for device in ("cpu", "pretend"):
        autoencoder.to(device).zero_grad()
        inputs = vectors.to(device), noise.to(device)
        pretended.clear()
        loss = autoencoder(*inputs, loss_only=True)
        loss.backward()
        launches = pretended.launches.total()
        results.append([loss, *(parameter.grad.clone() for parameter in autoencoder.parameters())])
    # In eight parts it is 1 191.
    assert launches < 100
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found.cpu(), expected, atol=1e-6, rtol=1e-4)


def test_little_noise_is_the_same_on_every_device_and_comes_in_one_copy(pretended):
    device = torch.device("pretend")
    values = [
        (batch.indices, batch.normal(5), batch.integers(1000))
        for batch in (GlobalBatch(50, 20, 3, seed=0), GlobalBatch(50, 20, 3, seed=0, device=device))
    ]
    sent = upload(values[1], device)
    assert pretended.to_device.total() == 1 and pretended.waits.total() == 0
    for expected, found in zip(values[0], sent, strict=True):
        assert found.device.type == "pretend" and found.dtype == expected.dtype
        assert torch.equal(found.cpu(), expected)


def test_what_is_large_or_there_already_is_not_packed(pretended):
    large, there = torch.zeros(2**19), torch.zeros(3, device="pretend")
    sent = upload([large, there, torch.ones(3), torch.ones(2, dtype=torch.bool)], torch.device("pretend"))
    assert sent[1] is there and pretended.to_device.total() == 2
    assert [tensor.sum().item() for tensor in sent] == [0, 0, 3, 2]
