"""Pipelines on an accelerator, the pretended one, in the ways that diffusers has for it."""

import pytest
import torch
from diffusers.pipelines import pipeline_utils

from factories import make_pipeline, make_vectors
from pdiff_hf import ParameterDataset, PDiffPipeline
from pretended_device import NAME

DRAW = {"batch_size": 3, "num_inference_steps": 4, "output_type": "pt"}


@pytest.fixture(params=["pdiff", "pca"])
def pipeline(request):
    return make_pipeline(request.param)


def draw(pipeline, **options):
    return pipeline(**{**DRAW, "generator": torch.Generator().manual_seed(0), **options}).parameters


def test_generated_networks_are_those_of_the_cpu(pipeline, pretended):
    expected = draw(pipeline)
    found = draw(pipeline.to(NAME))
    assert found.device.type == NAME
    torch.testing.assert_close(found.cpu(), expected)


def test_a_generator_of_the_device_is_taken(pipeline, pretended):
    assert draw(pipeline.to(NAME), generator=torch.Generator(NAME).manual_seed(0)).isfinite().all()


def test_models_wait_on_the_cpu_with_offload(pipeline, pretended):
    expected = draw(pipeline)
    pipeline.enable_model_cpu_offload(device=NAME)
    has_weights = any(True for _ in pipeline.autoencoder.parameters())
    waiting = [pipeline.unet, pipeline.autoencoder] if has_weights else [pipeline.unet]
    assert all(model.device.type == "cpu" for model in waiting)
    torch.testing.assert_close(draw(pipeline).cpu(), expected)
    assert all(model.device.type == "cpu" for model in waiting)
    latents = pipeline.autoencoder.encode(make_vectors(4).to(NAME)).latents
    assert latents.device.type == pipeline.autoencoder.device.type == NAME


def test_device_map_loads_onto_the_device(pipeline, pretended, tmp_path, monkeypatch):
    # diffusers looks for accelerators when it is imported.
    monkeypatch.setattr(pipeline_utils, "SUPPORTED_DEVICE_MAP", ["balanced", "cpu", NAME])
    expected = draw(pipeline)
    pipeline.save_pretrained(tmp_path)
    loaded = PDiffPipeline.from_pretrained(tmp_path, device_map=NAME)
    assert loaded.unet.device.type == loaded.autoencoder.device.type == NAME
    torch.testing.assert_close(draw(loaded).cpu(), expected)


# In units of the spread of the networks; one rounding to bfloat16 alone is up to 2⁻⁹ = 0.2 %.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-3), (torch.bfloat16, 5e-3)])
def test_half_precision_draws_the_same_networks_moved_or_loaded(tiny_run, pretended, dtype, bound):
    vectors = ParameterDataset(tiny_run / "dataset").vectors(rows=slice(None))
    spread = (vectors - vectors.mean(0)).norm(dim=1).mean()
    pipeline = PDiffPipeline.from_pretrained(tiny_run / "pipeline")
    expected = draw(pipeline)
    moved = draw(pipeline.to(NAME, dtype))
    loaded = draw(PDiffPipeline.from_pretrained(tiny_run / "pipeline", dtype=dtype).to(NAME))
    assert moved.dtype == torch.float32 and torch.equal(moved.cpu(), loaded.cpu())
    assert 0 < (moved.cpu() - expected).norm(dim=1).mean() < bound * spread
