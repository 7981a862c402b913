import torch

import pdiff_hf.data.dataset as dataset_module
from factories import make_dataset, make_vectors
from pdiff_hf.data import vectors as vectors_module
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.vectors import StoredVectors, load_onto, take_rows
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


def test_stored_vectors_are_loaded_once_onto_an_accelerator_that_has_room(tmp_path, pretended, monkeypatch):
    monkeypatch.setattr(dataset_module, "MAX_RESIDENT_BYTES", 0)
    monkeypatch.setattr(vectors_module, "BLOCK_BYTES", 4 * 5 * make_vectors().shape[1])
    stored, device = ParameterDataset(make_dataset(tmp_path)).vectors(), torch.device("pretend")
    rows = torch.arange(0, len(stored), 2)
    pretended.clear()
    loaded = load_onto(take_rows(stored, rows), device)
    assert loaded.device.type == "pretend" and torch.equal(loaded.cpu(), make_vectors()[rows])
    assert pretended.to_device.total() == -(-len(rows) // 5)
    assert pretended.waits.total() == 1, "of the copy that is compared"

    monkeypatch.setattr(vectors_module, "free_memory", lambda device: 8 * len(rows) * stored.shape[1] - 1)
    assert isinstance(load_onto(take_rows(stored, rows), device), StoredVectors)
    assert stored[rows].is_pinned()


def test_training_on_an_accelerator_takes_stored_vectors_as_it_takes_a_tensor(tmp_path, pretended, monkeypatch):
    dataset = make_dataset(tmp_path)
    options = {"latent_channels": 4, "latent_length": 2, "steps": 3, "lr_warmup_steps": 0}
    config = AutoencoderPDiffConfig(**options, allow_poor_reconstruction=True)
    whole, _ = train_autoencoder(dataset, tmp_path / "whole", config)
    monkeypatch.setattr(dataset_module, "MAX_RESIDENT_BYTES", 0)
    for name, memory in (("loaded", 2**40), ("streamed", 0)):
        monkeypatch.setattr(vectors_module, "free_memory", lambda device, memory=memory: memory)
        found, _ = train_autoencoder(dataset, tmp_path / name, config)
        for key, tensor in whole.state_dict().items():
            assert torch.equal(tensor.cpu(), found.state_dict()[key].cpu())
