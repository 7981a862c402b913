"""Long vectors in blocks: the same results as in one piece."""

import pytest
import torch

from factories import make_autoencoder, make_vectors
from pdiff_hf import AutoencoderPCA, AutoencoderPDiff

MODULES = ("autoencoder_base", "autoencoder_pca", "normalizer")


@pytest.fixture
def small_blocks(monkeypatch):
    for module in MODULES:
        monkeypatch.setattr(f"pdiff_hf.models.{module}.BLOCK_VALUES", 100)


@pytest.mark.parametrize("kind", ["pdiff", "pca"])
def test_rows_in_blocks_are_encoded_and_decoded_as_in_one_piece(kind, request):
    vectors, autoencoder = make_vectors(), make_autoencoder(kind)
    with torch.no_grad():
        latents = autoencoder.encode(vectors).latents
        sample = autoencoder.decode(latents).sample
    request.getfixturevalue("small_blocks")
    torch.testing.assert_close(autoencoder.encode_rows(vectors), latents, atol=1e-4, rtol=1e-4)
    found, seen = torch.zeros_like(vectors), torch.zeros_like(vectors)
    blocks = list(autoencoder.reconstruct_blocks(vectors))
    assert len(blocks) > 1
    for rows, columns, block in blocks:
        found[rows, columns] = block
        seen[rows, columns] += 1
    assert (seen == 1).all()
    torch.testing.assert_close(found, sample, atol=1e-5, rtol=1e-4)


def test_loss_in_chunks_is_that_of_the_batch(request):
    vectors, autoencoder = make_vectors(7), make_autoencoder()
    for layer in (autoencoder.encoder[-1], autoencoder.decoder[-1]):
        torch.nn.init.normal_(layer.weight, std=0.1)
    noise = torch.randn(vectors.shape), torch.randn(7, 4, 2)
    results = []
    for chunked in (False, True):
        if chunked:
            request.getfixturevalue("small_blocks")
        autoencoder.zero_grad()
        loss = autoencoder(vectors, *noise, loss_only=True)
        loss.backward()
        results.append([loss, *(parameter.grad.clone() for parameter in autoencoder.parameters())])
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-4)


def test_trained_weights_hardly_grow_with_the_vector():
    with torch.device("meta"):
        sizes = {
            values: sum(p.numel() for p in AutoencoderPDiff.from_preset("fast", num_parameters=values).parameters())
            for values in (10**5, 10**6)
        }
    # 32 channels of every patch of 64 values have three weights; a dense layer would have 128 a value.
    assert sizes[10**6] - sizes[10**5] <= 1.6 * 9 * 10**5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_basis_in_half_precision_is_saved_and_reconstructs(dtype, tmp_path):
    vectors = make_vectors()
    full, half = (
        AutoencoderPCA(num_parameters=vectors.shape[1], latent_channels=4, latent_length=2, basis_dtype=name)
        for name in ("float32", dtype)
    )
    for autoencoder in (full, half):
        autoencoder.fit_statistics(vectors)
    half.save_pretrained(tmp_path)
    loaded = AutoencoderPCA.from_pretrained(tmp_path)
    assert loaded.components.basis.dtype == getattr(torch, dtype) and loaded.dtype == torch.float32
    with torch.no_grad():
        expected, found = (a.decode(a.encode(vectors).latents).sample for a in (full, loaded))
    # Eight bits of every entry of the basis, whose errors average out.
    assert (found - expected).std() < 0.01 * vectors.std(0).mean()


def test_unknown_type_of_the_basis_is_refused():
    with pytest.raises(ValueError, match="basis_dtype must be one of"):
        AutoencoderPCA(num_parameters=16, basis_dtype="int8")
