"""Pipelines with conditions: one or one each, guidance, what is refused, and the way to a folder and back."""

import json

import pytest
import torch
from diffusers import DDIMScheduler

from factories import make_conditional_pipeline, make_pipeline
from pdiff_hf import ConditionEncoder, PDiffPipeline
from pdiff_hf.conditions import ConditionSpec

CAT = {"classes": ["cat"]}
PETS = {"classes": ["cat", "dog"]}


@pytest.fixture(scope="module")
def pipeline():
    pipeline = make_conditional_pipeline()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    return pipeline


def sample(pipeline, batch_size=2, **options):
    generator = [torch.Generator().manual_seed(seed) for seed in range(batch_size)]
    options = {"num_inference_steps": 4, "generator": generator, "output_type": "latent", **options}
    return pipeline(batch_size=batch_size, **options).parameters


def asked_of(pipeline, monkeypatch, **options):
    """How often, and with how many rows, a call asks the denoiser."""
    calls, forward = [], pipeline.unet.forward
    monkeypatch.setattr(
        pipeline.unet,
        "forward",
        lambda sample, *rest, **more: calls.append(len(sample)) or forward(sample, *rest, **more),
    )
    sample(pipeline, **options)
    return calls


def test_one_condition_is_that_of_all_networks_and_a_list_of_each(pipeline):
    cats, pets, both = (sample(pipeline, condition=condition) for condition in (CAT, PETS, [CAT, PETS]))
    assert not torch.allclose(cats, pets, atol=1e-2)
    torch.testing.assert_close(both, torch.stack([cats[0], pets[1]]))


def test_names_indices_and_embeds_mean_the_same(pipeline):
    named = sample(pipeline, condition=PETS)
    assert torch.equal(sample(pipeline, condition={"classes": [2, 1]}), named)
    assert torch.equal(sample(pipeline, condition_embeds=torch.tensor([[-1.0, 1, 1]])), named)
    assert torch.equal(sample(pipeline, condition_embeds=torch.tensor([[-1.0, 1, 1]] * 2)), named)


def test_guidance_leads_from_no_condition_through_the_condition_and_beyond(pipeline):
    unconditioned = pipeline.unet(torch.ones(1, 4, 2), 500).sample
    labels = pipeline.condition_encoder.encode([CAT])
    conditioned = pipeline.unet(torch.ones(1, 4, 2), 500, class_labels=labels).sample
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append(tensors["noise_pred"])
        return {}

    def prediction(**options):
        # From ones, as if they were the noise of the timestep.
        seen.clear()
        pipeline.scheduler.set_timesteps(2)
        timesteps = pipeline.scheduler.timesteps
        assert timesteps[0] == 500
        sample(
            pipeline,
            1,
            num_inference_steps=2,
            latents=torch.ones(1, 4, 2),
            callback_on_step_end=look,
            callback_on_step_end_tensor_inputs=["noise_pred"],
            **options,
        )
        return seen[0]

    for scale in (0, 0.5, 1, 3):
        expected = unconditioned + scale * (conditioned - unconditioned)
        torch.testing.assert_close(prediction(condition=CAT, guidance_scale=scale), expected)
    torch.testing.assert_close(prediction(guidance_scale=0), unconditioned)
    negative = pipeline.condition_encoder.encode([PETS])
    of_pets = pipeline.unet(torch.ones(1, 4, 2), 500, class_labels=negative).sample
    found = prediction(condition=CAT, negative_condition_embeds=negative, guidance_scale=2.0)
    torch.testing.assert_close(found, of_pets + 2 * (conditioned - of_pets))


@pytest.mark.parametrize(("scale", "rows"), [(1.0, 2), (0.0, 2), (1.5, 4)])
def test_denoiser_is_asked_only_for_what_has_a_weight(pipeline, monkeypatch, scale, rows):
    assert asked_of(pipeline, monkeypatch, condition=CAT, guidance_scale=scale) == [rows] * 4


def test_without_weight_for_the_condition_only_the_negative_one_is_asked_for(pipeline, monkeypatch):
    options = {"condition": CAT, "negative_condition_embeds": torch.ones(1, 3), "guidance_scale": 0}
    assert asked_of(pipeline, monkeypatch, **options) == [2] * 4


def test_saved_and_loaded_it_draws_the_same(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = PDiffPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(sample(loaded, condition=PETS), sample(pipeline, condition=PETS))


def test_in_half_precision_it_draws_nearly_the_same(tmp_path):
    pipeline = make_conditional_pipeline()
    whole = sample(pipeline, condition=PETS, guidance_scale=1.5)
    half = sample(pipeline.to(torch.bfloat16), condition=PETS, guidance_scale=1.5)
    assert half.dtype == torch.float32 and (half - whole).abs().max() < 0.2 * whole.abs().max()


def test_folders_without_conditions_are_as_they_were(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    assert "condition_encoder" not in json.loads((tmp_path / "model_index.json").read_text())
    assert PDiffPipeline.from_pretrained(tmp_path).condition_encoder is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r'for a condition, classes \(airplane, cat, dog\); give condition as \{"classes": …\}'),
        ({"condition": {"label": "cat"}}, "expected a condition as"),
        ({"condition": ["cat", "dog"]}, "expected a condition as .* found 'cat'"),
        ({"condition": {"classes": ["horse"]}}, "found 'horse'"),
        ({"condition": {"classes": []}}, "one class or more"),
        ({"condition": []}, "found an empty list"),
        ({"condition": [CAT] * 3}, "got 3 conditions for 2 networks"),
        ({"condition": CAT, "condition_embeds": torch.ones(1, 3)}, "found both"),
        ({"condition_embeds": torch.full((1, 3), float("nan"))}, "must be finite"),
        ({"condition_embeds": torch.ones(2, 4)}, r"must have shape \(B, 3\), got \(2, 4\)"),
        ({"condition_embeds": [1.0]}, "got list"),
        ({"condition": CAT, "negative_condition_embeds": torch.ones(1, 3)}, "no weight with guidance_scale=1"),
        ({"condition": CAT, "guidance_scale": -1}, "guidance_scale must be 0 or more"),
        ({"condition": CAT, "guidance_scale": float("nan")}, "guidance_scale must be 0 or more"),
        ({"condition": CAT, "guidance_scale": "high"}, "guidance_scale must be a number"),
    ],
)
def test_what_a_pipeline_with_conditions_refuses(pipeline, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        sample(pipeline, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"condition": CAT}, "condition"),
        ({"condition_embeds": torch.ones(1, 3)}, "condition_embeds"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
    ],
)
def test_a_pipeline_without_conditions_takes_none(options, named):
    with pytest.raises(ValueError, match=f"trained without conditions; leave out {named}"):
        sample(make_pipeline("pca"), **options)


def test_components_that_were_not_trained_together_are_refused(pipeline):
    parts = (pipeline.autoencoder, pipeline.unet, pipeline.scheduler)
    with pytest.raises(ValueError, match="takes conditions of 3 numbers, the condition_encoder gives 0"):
        PDiffPipeline(*parts)
    other = ConditionEncoder(**ConditionSpec("vector", 5).to_dict())
    with pytest.raises(ValueError, match="takes conditions of 3 numbers, the condition_encoder gives 5"):
        PDiffPipeline(*parts, condition_encoder=other)
    plain = make_pipeline("pca")
    with pytest.raises(ValueError, match="takes conditions of 0 numbers"):
        PDiffPipeline(plain.autoencoder, plain.unet, plain.scheduler, condition_encoder=pipeline.condition_encoder)


def test_truncation_leads_to_what_a_regression_expects_of_the_condition():
    pipeline = make_conditional_pipeline()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    labels = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(80, 4, 2, generator=torch.Generator().manual_seed(1))
    pipeline.unet.fit_gaussian(noise + labels[:, :1, None], pipeline.scheduler, labels)
    conditions = [CAT, PETS]
    expected = pipeline.unet.regression(pipeline.condition_encoder.encode(conditions)).view(2, 4, 2)
    found = sample(pipeline, condition=conditions, truncation=0)
    torch.testing.assert_close(found, expected)
    drawn, half = (sample(pipeline, condition=conditions, truncation=share) for share in (1, 0.5))
    torch.testing.assert_close(half, (drawn + expected) / 2)
    # Guidance exaggerates it, and without weight for the condition it is the mean of all networks.
    autoencoder = pipeline.autoencoder
    mean = autoencoder.scale_latents(autoencoder.latent_mean)
    exaggerated = sample(pipeline, condition=conditions, truncation=0, guidance_scale=2.0)
    torch.testing.assert_close(exaggerated, 2 * expected - mean)
    left_out = sample(pipeline, condition=conditions, truncation=0, guidance_scale=0)
    torch.testing.assert_close(left_out, mean.expand(2, -1, -1))
