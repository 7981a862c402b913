import json

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from factories import LATENTS, make_conditional_pipeline, make_network, make_pipeline, make_vectors
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.evaluation.similarity import nearest_distance
from pdiff_hf.evaluation.trajectory import PrincipalPlane, predict_clean, trajectory
from pdiff_hf.report.plots.trajectory import plot_trajectory, plot_trajectory_plane

SCHEDULERS = (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler)


def make_evaluator(pipe):
    images = torch.randn(40, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return ParameterEvaluator(make_network(), pipe.layout, images, torch.arange(40) % 3)


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def evaluator(pipe):
    return make_evaluator(pipe)


@pytest.fixture(scope="module")
def found(pipe, evaluator):
    return trajectory(pipe, evaluator, make_vectors(), num_starts=3, num_inference_steps=4)


def test_trajectory_ends_in_the_networks_that_the_pipeline_generates(pipe, evaluator, found):
    start = torch.randn(3, *LATENTS.values(), generator=(generator := torch.Generator().manual_seed(0)))
    networks = pipe(3, 4, generator, start, output_type="pt").parameters
    for name in ("noisy", "predicted"):
        end = {key: values[-1] for key, values in found[name].items()}
        torch.testing.assert_close(torch.tensor(end["accuracy"]), evaluator.accuracy(networks))
        expected = nearest_distance(networks, make_vectors()) / found["originals"]["l2_nearest_mean"]
        torch.testing.assert_close(torch.tensor(end["distance"]), expected, rtol=1e-4, atol=0)


def test_trajectory_starts_at_the_decoded_noise(pipe, evaluator, found):
    start = torch.randn(3, *LATENTS.values(), generator=torch.Generator().manual_seed(0))
    networks = pipe.autoencoder.decode(pipe.autoencoder.unscale_latents(start)).sample
    torch.testing.assert_close(torch.tensor(found["noisy"]["accuracy"][0]), evaluator.accuracy(networks))
    expected = nearest_distance(networks, make_vectors()) / found["originals"]["l2_nearest_mean"]
    torch.testing.assert_close(torch.tensor(found["noisy"]["distance"][0]), expected, rtol=1e-4, atol=0)
    # What the denoiser expects is another network.
    assert found["predicted"]["distance"][0] != found["noisy"]["distance"][0]


def test_pipelines_with_conditions_are_told_none():
    pipe = make_conditional_pipeline()
    evaluator = make_evaluator(pipe)
    found = trajectory(pipe, evaluator, make_vectors(), num_starts=3, num_inference_steps=4)
    start = torch.randn(3, *LATENTS.values(), generator=(generator := torch.Generator().manual_seed(0)))
    networks = pipe(3, 4, generator, start, output_type="pt", guidance_scale=0).parameters
    expected = nearest_distance(networks, make_vectors()) / found["originals"]["l2_nearest_mean"]
    torch.testing.assert_close(torch.tensor(found["noisy"]["distance"][-1]), expected, rtol=1e-4, atol=0)


def test_every_step_has_a_point_and_the_timesteps_fall_to_zero(found):
    assert found["steps"] == [0, 1, 2, 3, 4]
    assert found["timesteps"][-1] == 0 and found["timesteps"] == sorted(found["timesteps"], reverse=True)
    for name in ("noisy", "predicted"):
        assert {key: torch.tensor(values).shape[:2] for key, values in found[name].items()} == dict.fromkeys(
            ("accuracy", "distance", "distance_to_mean", "plane"), (5, 3)
        )


def test_of_many_steps_some_are_looked_at(pipe, evaluator):
    found = trajectory(pipe, evaluator, make_vectors(), num_starts=1, num_inference_steps=30, max_points=4)
    assert found["steps"] == [0, 10, 20, 30]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_clean_latents_are_those_that_noise_was_added_to(scheduler, prediction):
    scheduler = scheduler(prediction_type=prediction)
    clean, noise = torch.randn(2, 2, 4, 2, generator=torch.Generator().manual_seed(0))
    for timestep in (5, 500):
        alpha = scheduler.alphas_cumprod[timestep]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        output = {"epsilon": noise, "sample": clean, "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * clean}
        found = predict_clean(scheduler, output[prediction], timestep, noisy)
        torch.testing.assert_close(found, clean, atol=2e-5, rtol=0)


def test_clean_latents_are_those_of_the_scheduler(pipe):
    """The last step of DDPM has no noise: its mean is the clean sample that the scheduler computes itself."""
    scheduler = DDPMScheduler(clip_sample=False, prediction_type="v_prediction")
    scheduler.set_timesteps(10)
    latents, output = torch.randn(2, 2, 4, 2, generator=torch.Generator().manual_seed(1))
    for timestep in scheduler.timesteps[[0, 5, -1]]:
        expected = scheduler.step(output, timestep, latents).pred_original_sample
        torch.testing.assert_close(predict_clean(scheduler, output, timestep, latents), expected)


def test_plane_is_that_of_a_singular_value_decomposition():
    vectors = make_vectors().double()
    centered = vectors - vectors.mean(0)
    _, singular, right = torch.linalg.svd(centered, full_matrices=False)
    plane = PrincipalPlane(vectors.float())
    expected = (centered @ right[:2].T).float()
    found = plane.project(vectors.float())
    # Each component up to its sign.
    torch.testing.assert_close(found * (found * expected).sum(0).sign(), expected, atol=1e-4, rtol=0)
    assert plane.explained == pytest.approx((singular.square() / singular.square().sum())[:2].tolist(), rel=1e-5)


def test_originals_that_are_all_equal_have_a_trajectory(pipe, evaluator):
    found = trajectory(pipe, evaluator, make_vectors()[:1].repeat(4, 1), num_starts=2, num_inference_steps=2)
    json.dumps(found, allow_nan=False)
    assert found["noisy"]["distance"][0] == [None, None]
    plot_trajectory(found).draw(False)
    plot_trajectory_plane(found).draw(False)


def test_scheduler_that_scales_latents_is_refused(evaluator):
    pipe = make_pipeline()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match=r"expected one of DDIMScheduler, .*, found EulerDiscreteScheduler"):
        trajectory(pipe, evaluator, make_vectors())


def test_too_few_originals_are_refused(pipe, evaluator):
    with pytest.raises(ValueError, match="expected at least 3 originals and 2 points, found 2 and 51"):
        trajectory(pipe, evaluator, make_vectors()[:2])


def test_figures_name_what_they_show(found, tmp_path):
    for plot in (plot_trajectory(found), plot_trajectory_plane(found)):
        assert plot.save_png(tmp_path).stat().st_size > 10_000
        assert set(plot.svgs()) == {"wide", "narrow"}
    assert f"{100 * found['originals']['accuracy']['mean']:.2f} %" in plot_trajectory(found).title
    assert "3 starts" in plot_trajectory(found).note


def test_command_writes_into_the_report_and_the_next_evaluation_shows_it(pdiff, tiny_run_copy):
    run = tiny_run_copy
    code, out, err = pdiff("trajectory", run, "--num-starts", 2, "--json")
    assert code == 0, err
    written = json.loads((run / "report" / "trajectory.json").read_text())
    assert json.loads(out) == written and written["num_inference_steps"] == 5 and written["num_starts"] == 2
    assert "trajectory_plane" not in (run / "report" / "report.html").read_text()

    code, _, err = pdiff("evaluate", run)
    assert code == 0, err
    assert json.loads((run / "report" / "trajectory.json").read_text()) == written
    assert {"trajectory.png", "trajectory_plane.png"} <= {path.name for path in (run / "report").iterdir()}
    html = (run / "report" / "report.html").read_text()
    assert "How they come out of noise" in html and plot_trajectory(written).title in html.replace("\u00a0", " ")

    code, _, err = pdiff("trajectory", run, "--scheduler", "euler")
    assert code == 2 and "Error: --scheduler: expected 'dpmsolver++', 'ddim' or 'ddpm', found 'euler'." in err
