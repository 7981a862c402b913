import torch

import pdiff_hf.data.dataset as dataset_module
from factories import make_dataset, make_vectors
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.vectors import StoredVectors, take_rows
from pdiff_hf.models.kinds import AutoencoderPDiffConfig
from pdiff_hf.training.autoencoder import train_autoencoder


def test_small_dataset_is_a_tensor(tmp_path):
    vectors = ParameterDataset(make_dataset(tmp_path)).vectors()
    assert isinstance(vectors, torch.Tensor) and torch.equal(vectors, make_vectors())


def test_stored_vectors_are_indexed_as_a_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "MAX_RESIDENT_BYTES", 0)
    dataset = ParameterDataset(make_dataset(tmp_path))
    stored, layout = dataset.vectors(), dataset.layout
    expected = make_vectors()
    assert isinstance(stored, StoredVectors)
    assert stored.shape == expected.shape and len(stored) == len(expected)
    assert layout.num_parameters == expected.shape[1]
    rows = torch.tensor([5, 0, 5])
    for index in (rows, slice(3, 9), (slice(None), slice(2, 7)), (slice(1, 3), slice(5, 10**6))):
        assert torch.equal(stored[index], expected[index])
    assert torch.equal(take_rows(stored, rows)[:, 1:4], expected[rows][:, 1:4])


def test_training_on_stored_vectors_is_training_on_the_tensor(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path)
    options = {"latent_channels": 4, "latent_length": 2, "steps": 3, "lr_warmup_steps": 0}
    config = AutoencoderPDiffConfig(**options, allow_poor_reconstruction=True)
    whole, report = train_autoencoder(dataset, tmp_path / "whole", config)
    monkeypatch.setattr(dataset_module, "MAX_RESIDENT_BYTES", 0)
    streamed, streamed_report = train_autoencoder(dataset, tmp_path / "streamed", config)
    assert streamed_report == report
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, streamed.state_dict()[name])
