import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from factories import NETWORK, make_autoencoder, make_layout, make_network, make_pipeline
from pdiff_hf import BaseModel, PDiffPipeline


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(pipeline, **options):
    options = {"num_inference_steps": 3, "generator": generator(), "output_type": "pt", **options}
    return pipeline(**options).parameters


@pytest.fixture(params=["pdiff", "pca"])
def pipeline(request):
    return make_pipeline(request.param)


def with_base_model(pipeline, folder):
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK)
    pipeline.base_model = base.save_weights(make_network(), folder / "source")
    return pipeline


def test_output_types_agree(pipeline):
    vectors = sample(pipeline, batch_size=2)
    assert vectors.shape == (2, make_layout().num_parameters) and vectors.dtype == torch.float32
    assert np.array_equal(sample(pipeline, batch_size=2, output_type="np"), vectors.numpy())
    states = sample(pipeline, batch_size=2, output_type="state_dict")
    assert torch.equal(make_layout().flatten(states[1]), vectors[1])
    latents = sample(pipeline, batch_size=2, output_type="latent")
    decoded = pipeline.autoencoder.decode(pipeline.autoencoder.unscale_latents(latents)).sample
    assert torch.equal(decoded, vectors)


def test_tuple_and_output_object_agree(pipeline):
    as_tuple = pipeline(num_inference_steps=3, generator=generator(), output_type="pt", return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], sample(pipeline))


def test_same_seed_gives_the_same_tensors(pipeline):
    assert torch.equal(sample(pipeline, batch_size=3), sample(pipeline, batch_size=3))
    assert not torch.equal(sample(pipeline), sample(pipeline, generator=generator(1)))


def test_list_of_generators_makes_rows_reproducible_alone(pipeline):
    together = sample(pipeline, batch_size=3, generator=[generator(seed) for seed in range(3)])
    for seed in range(3):
        # Rows of a batch and solo runs take different kernels: HF_FACTS gives 2e-5.
        alone = sample(pipeline, generator=[generator(seed)])
        torch.testing.assert_close(together[seed], alone[0], atol=2e-5, rtol=0)


def test_given_latents_are_the_starting_noise(pipeline):
    noise = torch.randn(2, 4, 2, generator=generator())
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    assert torch.equal(sample(pipeline, batch_size=2, latents=noise), sample(pipeline, batch_size=2))


@pytest.mark.parametrize(
    "scheduler",
    [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler],
)
def test_schedulers_can_be_swapped_in(pipeline, scheduler):
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    vectors = sample(pipeline, batch_size=2, num_inference_steps=5)
    assert vectors.shape == (2, make_layout().num_parameters) and vectors.isfinite().all()


def test_truncation_0_gives_the_decoded_mean_and_a_half_the_middle(pipeline):
    autoencoder = pipeline.autoencoder
    mean = autoencoder.decode(autoencoder.latent_mean[None]).sample
    collapsed = sample(pipeline, batch_size=2, truncation=0.0)
    # Scaled and unscaled once: a few float32 roundings.
    torch.testing.assert_close(collapsed, mean.expand(2, -1), atol=1e-5, rtol=0)
    full, half = (sample(pipeline, truncation=t, output_type="latent") for t in (1.0, 0.5))
    middle = (full + autoencoder.scale_latents(autoencoder.latent_mean)) / 2
    torch.testing.assert_close(half, middle, atol=1e-6, rtol=1e-5)


def test_decoding_in_chunks_equals_decoding_at_once(pipeline, monkeypatch):
    at_once = sample(pipeline, batch_size=5)
    monkeypatch.setattr("pdiff_hf.models.autoencoder_base.DECODED_VALUES", 2 * make_layout().num_parameters)
    torch.testing.assert_close(sample(pipeline, batch_size=5), at_once, atol=2e-5, rtol=0)


def test_callback_sees_every_step_and_can_replace_the_latents(pipeline):
    steps = []

    def zero_at_the_end(pipe, step, timestep, tensors):
        assert pipe is pipeline
        steps.append((step, int(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else tensors

    latents = sample(pipeline, output_type="latent", callback_on_step_end=zero_at_the_end)
    assert [step for step, _ in steps] == [0, 1, 2] and steps[0][1] > steps[-1][1]
    assert torch.equal(latents, torch.zeros_like(latents))


def test_callback_may_return_nothing_and_interrupt(pipeline):
    seen = []

    def stop(pipe, step, timestep, tensors):
        seen.append((step, pipe.num_timesteps, tensors["latents"]))
        pipe._interrupt = step == 1

    latents = sample(pipeline, num_inference_steps=5, output_type="latent", callback_on_step_end=stop)
    assert [(step, count) for step, count, _ in seen] == [(0, 5), (1, 5)] and pipeline.interrupt
    assert torch.equal(latents, seen[-1][2])
    # The next call is a new one.
    sample(pipeline, callback_on_step_end=lambda *args: None)
    assert pipeline.num_timesteps == 3 and not pipeline.interrupt


def test_callback_objects_of_diffusers_name_their_tensors(pipeline):
    class Count(PipelineCallback):
        tensor_inputs: ClassVar[list[str]] = ["latents", "noise_pred"]
        seen: ClassVar[list[set[str]]] = []

        def callback_fn(self, pipe, step, timestep, tensors):
            self.seen.append(set(tensors))
            return tensors

    sample(pipeline, callback_on_step_end=MultiPipelineCallbacks([Count(0.5, None)]))
    assert Count.seen == 3 * [{"latents", "noise_pred"}]


@pytest.mark.parametrize("returned", [5, {"latents": torch.zeros(1)}, {"latents": None}])
def test_what_a_callback_must_not_return_is_named(returned):
    with pytest.raises(ValueError, match="callback_on_step_end must return"):
        sample(make_pipeline(), callback_on_step_end=lambda *args: returned)


def test_numbers_of_numpy_and_a_tuple_of_generators_are_taken(pipeline):
    options = {"batch_size": np.int64(2), "num_inference_steps": torch.tensor(3), "truncation": np.float32(1)}
    found = sample(pipeline, **options, generator=(generator(0), generator(1)))
    assert torch.equal(found, sample(pipeline, batch_size=2, generator=[generator(0), generator(1)]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ({"batch_size": "3"}, "batch_size must be a whole number, got '3'"),
        ({"batch_size": True}, "batch_size must be a whole number, got True"),
        ({"batch_size": None}, "batch_size must be a whole number, got None"),
        ({"num_inference_steps": 1.5}, "num_inference_steps must be a whole number, got 1.5"),
        ({"num_inference_steps": 2000}, "num_inference_steps must be at most 1000"),
        ({"truncation": float("nan")}, "truncation must be between 0"),
        ({"truncation": "1"}, "truncation must be a number"),
        ({"latents": torch.full((1, 4, 2), float("nan"))}, "latents must be finite"),
        ({"latents": torch.zeros(1, 4, 2, dtype=torch.int64)}, "latents must be a floating-point tensor"),
        ({"latents": np.zeros((1, 4, 2))}, "latents must be a floating-point tensor .* got ndarray"),
        ({"generator": 0}, "generator must be a torch.Generator or a list of them, got 0"),
        ({"generator": [None]}, r"generator must be a torch.Generator or a list of them, got \[None\]"),
        ({"callback_on_step_end": 1}, "callback_on_step_end must be callable"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1"),
        ({"output_type": "pil"}, "output_type must be one of"),
        ({"truncation": 1.5}, "truncation must be between 0"),
        ({"latents": torch.zeros(1, 2, 4)}, r"latents must have shape \(1, 4, 2\), got \(1, 2, 4\)"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for a batch of 1"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "callback can only be given"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        sample(make_pipeline(), **options)


def test_saved_and_loaded_pipeline_agrees(pipeline, tmp_path):
    expected = sample(pipeline, batch_size=4)
    pipeline.save_pretrained(tmp_path)
    loaded = PDiffPipeline.from_pretrained(tmp_path)
    assert not loaded.unet.training and not loaded.autoencoder.training
    torch.testing.assert_close(sample(loaded, batch_size=4), expected, atol=5e-5, rtol=0)


def test_index_names_our_components_by_package(tmp_path):
    """Contract with diffusers: an index with full module paths would load from a folder but not from the Hub."""
    make_pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["autoencoder"] == ["pdiff_hf", "AutoencoderPDiff"]
    assert index["unet"] == ["diffusers", "UNet1DModel"]
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]


def test_passed_in_component_replaces_the_saved_one(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    autoencoder = make_autoencoder()
    loaded = PDiffPipeline.from_pretrained(tmp_path, autoencoder=autoencoder)
    assert loaded.autoencoder is autoencoder


def test_plain_diffusers_loads_the_folder_through_its_shim(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    code = (
        "from diffusers import DiffusionPipeline;"
        f"p = DiffusionPipeline.from_pretrained({str(tmp_path)!r}, custom_pipeline={str(tmp_path)!r}, "
        "trust_remote_code=True); print(type(p).__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "PDiffPipeline", result.stderr


def test_dtype_argument_casts_all_but_the_normaliser(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    loaded = PDiffPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.unet.dtype == loaded.autoencoder.dtype == torch.bfloat16
    assert loaded.autoencoder.normalizer.std.dtype == torch.float32
    assert sample(loaded).dtype == torch.float32


def test_build_model_puts_generated_parameters_in_the_base_model(tmp_path):
    pipeline = with_base_model(make_pipeline(), tmp_path)
    pipeline.save_pretrained(tmp_path / "pipeline")
    (tmp_path / "source").rename(tmp_path / "gone")
    (tmp_path / "pipeline").rename(tmp_path / "moved")
    loaded = PDiffPipeline.from_pretrained(tmp_path / "moved")
    state = sample(loaded, output_type="state_dict")[0]
    model = loaded.build_model(state)
    assert not model.training
    assert torch.equal(make_layout().flatten(model), make_layout().flatten(state))
    with pytest.raises(ValueError, match=r"tensor .*: expected shape .*, found no such tensor"):
        loaded.build_model(dict(list(state.items())[1:]))


def test_saving_again_elsewhere_carries_the_base_model_along(tmp_path):
    with_base_model(make_pipeline(), tmp_path).save_pretrained(tmp_path / "one")
    PDiffPipeline.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    assert (tmp_path / "two" / "base" / "model.safetensors").is_file()


def test_pipeline_without_base_model_says_so():
    with pytest.raises(ValueError, match="carries no base model"):
        make_pipeline().build_model({})


def test_ddpm_variance_noise_comes_from_the_generator(pipeline):
    assert isinstance(pipeline.scheduler, DDPMScheduler)
    torch.manual_seed(1)
    first = sample(pipeline)
    torch.manual_seed(2)
    assert torch.equal(sample(pipeline), first)


def test_call_documents_every_argument():
    documented = inspect.getdoc(PDiffPipeline.__call__)
    arguments = [name for name in inspect.signature(PDiffPipeline.__call__).parameters if name != "self"]
    assert [name for name in arguments if f"{name} (" not in documented] == []


def test_pipeline_is_a_diffusion_pipeline():
    assert issubclass(PDiffPipeline, DiffusionPipeline)


def test_shim_is_the_one_in_the_pipelines_folder(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    shim = Path(__file__).parents[2] / "pipelines" / "pipeline.py"
    assert (tmp_path / "pipeline.py").read_text() == shim.read_text()
