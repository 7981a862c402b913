"""Pipelines of version 0.1, whose denoiser is diffusers' own: `golden/pipeline_0_1`, and what it drew then."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UNet1DModel
from safetensors.torch import load_file

from golden_files import GOLDEN
from pdiff_hf import PDiffPipeline
from pdiff_hf.files import read_json

FOLDER = GOLDEN / "pipeline_0_1"
DRAWN = load_file(GOLDEN / "pipeline_0_1_drawn.safetensors")


@pytest.fixture
def pipeline():
    pipeline = PDiffPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, steps, **options):
    return pipeline(3, steps, torch.Generator().manual_seed(0), **options).parameters


# To the bit where they were written; other processors round sums of products in another order.
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}


def test_it_draws_what_it_drew(pipeline):
    assert type(pipeline.unet) is UNet1DModel
    with pytest.warns(UserWarning, match="5 steps of DDPMScheduler draw"):
        found = draw(pipeline, 5, output_type="latent"), draw(pipeline, 5, output_type="pt")
    torch.testing.assert_close(found[0], DRAWN["ddpm"], **TOLERANCE)
    torch.testing.assert_close(found[1], DRAWN["vectors"], **TOLERANCE)


def test_it_draws_what_it_drew_with_another_scheduler(pipeline):
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    torch.testing.assert_close(draw(pipeline, 20, output_type="latent"), DRAWN["dpmsolver++"], **TOLERANCE)


def test_saved_again_it_is_the_same(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    for name in ("autoencoder", "unet"):
        file = f"{name}/diffusion_pytorch_model.safetensors"
        found, expected = load_file(tmp_path / file), load_file(FOLDER / file)
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    index, before = (read_json(folder / "model_index.json") for folder in (tmp_path, FOLDER))
    assert {name: index[name] for name in ("autoencoder", "unet", "scheduler", "base_model")} == {
        name: before[name] for name in ("autoencoder", "unet", "scheduler", "base_model")
    }


def test_its_networks_are_built(pipeline):
    with pytest.warns(UserWarning, match="5 steps of DDPMScheduler draw"):
        model = pipeline.build_model(draw(pipeline, 5)[0])
    assert model(torch.zeros(2, 1, 2, 2)).shape == (2, 3)
