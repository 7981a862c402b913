"""Trajectories of generation: the networks between noise and the end, step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, SchedulerMixin

from ..identity import OTHER_DATASET, check_same_network
from .autocorrelation import RunMemory, independent_distance
from .evaluator import ParameterEvaluator
from .similarity import column_blocks, nearest_distance

SCHEMA = 1
# Latents of these have the variance of the diffusion process, so that `alphas_cumprod` says what is noise in them.
SCHEDULERS = (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler)
# Of a thousand steps, so many are looked at.
MAX_POINTS = 51


@torch.no_grad()
def trajectory(
    pipe: DiffusionPipeline,
    evaluator: ParameterEvaluator,
    originals: torch.Tensor,
    num_starts: int = 5,
    num_inference_steps: int = 20,
    seed: int = 0,
    max_points: int = MAX_POINTS,
    memory: RunMemory | None = None,
    condition: Mapping[str, Any] | None = None,
    guidance_scale: float = 1.0,
    references: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Follow networks through the reverse process of a pipeline. Source: Wang et al. 2024, arXiv 2402.13144, §4.

    At every point two networks are decoded: the `noisy` one of the latents as they are, and the `predicted` one of the
    clean latents that the UNet expects from there. At the end, both are the generated network.

    Args:
        pipe ([`PDiffPipeline`]): Trained; its scheduler is used.
        evaluator ([`ParameterEvaluator`]): On the examples that accuracies are measured on.
        originals (`torch.Tensor` of shape `(K, D)`): Rows of the parameter dataset, at least 3.
        num_starts (`int`, *optional*, defaults to 5): Starts B, standard normal noise each.
        num_inference_steps (`int`, *optional*, defaults to 20): Denoising steps S.
        seed (`int`, *optional*, defaults to 0): Of the noise.
        max_points (`int`, *optional*, defaults to 51): Largest number of points, evenly spread over the steps.
        memory ([`RunMemory`], *optional*): Which originals are independent of which; all by default.
        condition, guidance_scale (*optional*): What the networks are for, see [`PDiffPipeline`]; without, pipelines
            with conditions are told none.
        references (`torch.Tensor` of shape `(n, D)`, *optional*): Networks whose accuracy is compared with, in place
            of that of the originals: those that were trained on the condition's task, where originals are of many.

    Returns:
        `dict`: content of `trajectory.json`, described in `docs/analysis.md`; lists by point and start.

    Raises:
        ValueError: fewer than 3 originals or 2 points, or a scheduler whose latents are scaled in another way.
    """
    if not isinstance(pipe.scheduler, SCHEDULERS):
        names = ", ".join(scheduler.__name__ for scheduler in SCHEDULERS)
        raise ValueError(f"expected one of {names} in the pipeline, found {type(pipe.scheduler).__name__}.")
    check_same_network(evaluator.identity_for(pipe.identity), pipe.identity, OTHER_DATASET)
    if len(originals) < 3 or max_points < 2:
        raise ValueError(
            f"expected at least 3 originals and 2 points, found {len(originals)} and {max_points}; collect more "
            "checkpoints or raise max_points."
        )

    # 1. Latents on the way
    told = {} if pipe.condition_encoder is None else {"guidance_scale": 0.0}
    if condition is not None:
        told = {"condition": condition, "guidance_scale": guidance_scale}
    steps, timesteps, latents = _follow(pipe, num_starts, num_inference_steps, seed, max_points, told)

    # 2. What networks these are, and where they lie
    plane = PrincipalPlane(originals)
    memory = RunMemory.independent(len(originals)) if memory is None else memory
    yardstick = independent_distance(originals, memory).mean().item()
    mean = originals.mean(0, keepdim=True)
    reach = nearest_distance(originals, mean).double().square().mean().sqrt().item()
    accuracy = evaluator.accuracy(originals if references is None else references)

    def describe(latents: torch.Tensor) -> dict[str, list]:
        """Nested lists `(P, B, …)` of the networks that latents `(P, B, C, L)` mean, few of them at a time."""
        columns: dict[str, list[torch.Tensor]] = {"accuracy": [], "distance": [], "distance_to_mean": [], "plane": []}
        for decoded in pipe.autoencoder.decode_rows(pipe.autoencoder.unscale_latents(latents.flatten(0, 1))):
            networks = decoded.to(originals.device)
            columns["accuracy"].append(evaluator.accuracy(decoded))
            columns["distance"].append(nearest_distance(networks, originals) / yardstick)
            columns["distance_to_mean"].append(nearest_distance(networks, mean) / reach)
            columns["plane"].append(plane.project(networks))
        return {name: _json(torch.cat(parts).unflatten(0, latents.shape[:2])) for name, parts in columns.items()}

    return {
        "schema": SCHEMA,
        "scheduler": type(pipe.scheduler).__name__,
        "num_inference_steps": num_inference_steps,
        "num_starts": num_starts,
        "seed": seed,
        "compared_with": "originals" if references is None else "networks trained on the task",
        **({} if condition is None else {"condition": condition, "guidance_scale": guidance_scale}),
        "num_images": len(evaluator.labels),
        "num_parameters": originals.shape[1],
        "steps": steps,
        "timesteps": timesteps,
        "num_train_timesteps": pipe.scheduler.config.num_train_timesteps,
        "noisy": describe(latents["noisy"]),
        "predicted": describe(latents["predicted"]),
        "originals": {
            "accuracy": {"mean": accuracy.mean().item(), "min": accuracy.min().item(), "max": accuracy.max().item()},
            "l2_nearest_mean": nearest_distance(originals, originals, exclude_self=True).mean().item(),
            "l2_independent_mean": yardstick,
            "l2_to_mean_rms": reach,
            "plane": plane.project(originals).tolist(),
            "explained_variance": plane.explained,
        },
        "mean_of_originals": {
            "accuracy": evaluator.accuracy(mean).item(),
            "distance": _json(nearest_distance(mean, originals) / yardstick)[0],
            "plane": plane.project(mean)[0].tolist(),
        },
    }


def _follow(
    pipe: DiffusionPipeline,
    num_starts: int,
    num_inference_steps: int,
    seed: int,
    max_points: int,
    told: Mapping[str, Any],
) -> tuple[list[int], list[int], dict[str, torch.Tensor]]:
    """Steps and timesteps of the points, and the latents there `(P, B, C, L)`, as they are and as predicted."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(num_starts, *pipe.autoencoder.latent_shape, generator=generator).to(pipe.unet.dtype)
    steps, timesteps, latents = [], [], {"noisy": [], "predicted": []}
    before = start.to(pipe.unet.device)

    def look(pipe: DiffusionPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        nonlocal before
        num_steps = len(pipe.scheduler.timesteps)
        if step in torch.linspace(0, num_steps, min(num_steps + 1, max_points)).round().long():
            steps.append(step)
            timesteps.append(int(timestep))
            latents["noisy"].append(before)
            latents["predicted"].append(predict_clean(pipe.scheduler, tensors["noise_pred"], timestep, before))
        before = tensors["latents"]
        return tensors

    final = pipe(
        **told,
        batch_size=num_starts,
        num_inference_steps=num_inference_steps,
        generator=generator,
        latents=start,
        output_type="latent",
        callback_on_step_end=look,
        callback_on_step_end_tensor_inputs=["latents", "noise_pred"],
    ).parameters
    steps.append(len(pipe.scheduler.timesteps))
    timesteps.append(0)
    return steps, timesteps, {name: torch.stack([*points, final]) for name, points in latents.items()}


def predict_clean(
    scheduler: SchedulerMixin, output: torch.Tensor, timestep: torch.Tensor | int, latents: torch.Tensor
) -> torch.Tensor:
    """The clean latents that a UNet's output `(B, C, L)` means, given `latents` `(B, C, L)` of a timestep.

    Source: Ho et al. 2020, arXiv 2006.11239, eq. 15, for noise; Salimans and Ho 2022, arXiv 2202.00512, appendix D,
    for the velocity.
    """
    alpha = scheduler.alphas_cumprod[int(timestep)].to(latents)
    predicted = {
        "epsilon": lambda: (latents - (1 - alpha).sqrt() * output) / alpha.sqrt(),
        "v_prediction": lambda: alpha.sqrt() * latents - (1 - alpha).sqrt() * output,
        "sample": lambda: output,
    }
    return predicted[scheduler.config.prediction_type]()


class PrincipalPlane:
    """The plane of the first two principal components of vectors `(K, D)`, K at least 3, by their Gram matrix.

    Attributes:
        explained (`list[float]`): Shares of the variance along both components.
    """

    def __init__(self, vectors: torch.Tensor):
        gram = torch.zeros(len(vectors), len(vectors), dtype=torch.float64, device=vectors.device)
        for block, _ in column_blocks(vectors, vectors):
            block = block - block.mean(0)
            gram += block @ block.T
        eigenvalues, eigenvectors = torch.linalg.eigh(gram)
        # Vectors that are all equal lie in no plane; then every point is at its origin.
        scales = eigenvalues.clamp_min(0).flip(0)[:2].sqrt()
        self.explained = (scales.square() / gram.trace().clamp_min(1e-30)).tolist()
        weights = (eigenvectors.flip(1)[:, :2] / scales.clamp_min(1e-30)).T
        self._mean = vectors.mean(0)
        blocks = (weights @ (block - block.mean(0)) for block, _ in column_blocks(vectors, vectors))
        self._components = torch.cat([block.float() for block in blocks], 1)

    def project(self, vectors: torch.Tensor) -> torch.Tensor:
        """Coordinates `(n, 2)` of vectors `(n, D)`, in parameter units; 0 is the mean of the spanning ones."""
        return (vectors - self._mean) @ self._components.T


def _json(values: torch.Tensor) -> list:
    """Nested lists with `None` for what is not finite, as far off networks may be."""
    if values.ndim > 1:
        return [_json(row) for row in values]
    return [value if math.isfinite(value) else None for value in values.tolist()]
