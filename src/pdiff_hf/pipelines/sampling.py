"""Drawing many networks from a pipeline, in batches of bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from safetensors import SafetensorError

from ..data.dataset import ParameterDataset
from ..files import check_artefact, errors_of, read_object
from ..identity import OTHER_DATASET, check_same_network
from ..machine import default_device, process_state
from ..models.auto import connect_network
from ..wording import argument
from .pipeline_pdiff import PDiffPipeline

# `dpmsolver++` is DPMSolverMultistepScheduler's default algorithm (Source: Lu et al. 2022, arXiv 2211.01095).
SCHEDULERS = {"dpmsolver++": DPMSolverMultistepScheduler, "ddim": DDIMScheduler, "ddpm": DDPMScheduler}

SAMPLERS = ("diffusion", "gaussian_latents")

# Networks sampled at once, at most: of large networks no more than have so many bytes. It is what processes share, so
# that the files do not depend on their number.
BATCH = 256

BATCH_BYTES = 2**28


def make_scheduler(name: str, trained: SchedulerMixin, num_inference_steps: int) -> SchedulerMixin:
    """The scheduler of a name of `SCHEDULERS` for so many steps, with the noise schedule of the one of training."""
    if name not in SCHEDULERS:
        raise ValueError(f"{argument('scheduler')} must be one of {sorted(SCHEDULERS)}, got {name!r}.")
    options = {}
    if name == "dpmsolver++" and num_inference_steps == trained.config.num_train_timesteps:
        # It counts one timestep more than steps: spaced in another way, there is none for the last.
        options["timestep_spacing"] = "trailing"
    return SCHEDULERS[name].from_config(trained.config, **options)


def batch_seed(seed: int, number: int) -> int:
    """The first batch has the seed itself, so that a pipeline called with it gives the same networks."""
    return seed if number == 0 else int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint32)[0])


@torch.no_grad()
def draw_gaussian_latents(
    pipeline: PDiffPipeline, dataset: ParameterDataset, num_samples: int, truncation: float, seed: int
) -> torch.Tensor:
    """Scaled latents `(num_samples, C, L)` of a normal distribution fitted to those of a dataset, value by value."""
    check_same_network(dataset.identity, pipeline.identity, OTHER_DATASET)
    autoencoder = pipeline.autoencoder
    connect_network(autoencoder, dataset.base_model)
    latents = autoencoder.scale_latents(autoencoder.encode_rows(dataset.vectors()))
    noise = torch.randn(num_samples, *autoencoder.latent_shape, generator=torch.Generator().manual_seed(seed))
    return torch.addcmul(latents.mean(0), noise.to(latents), truncation * latents.std(0))


class Draws:
    """Vectors that are decoded when their rows are asked for: only latents of so many networks fit into memory."""

    def __init__(self, pipeline: PDiffPipeline, latents: torch.Tensor):
        self._autoencoder = pipeline.autoencoder
        self._latents = latents

    def __len__(self) -> int:
        return len(self._latents)

    def state_dicts(self, rows: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """The networks of some rows."""
        return [self._autoencoder.layout.unflatten(vector) for vector in self[rows]]

    @torch.no_grad()
    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        latents = self._autoencoder.unscale_latents(self._latents[rows.to(self._latents.device)])
        return torch.cat([part.cpu() for part in self._autoencoder.decode_rows(latents)])


def load_pipeline(folder: str | Path) -> PDiffPipeline:
    """Load a pipeline from a local folder onto the accelerator, if there is one, with a quiet progress bar."""
    check_artefact(folder, "model_index.json", "a pipeline")
    with errors_of(folder, OSError, SafetensorError):
        if not isinstance(read_object(Path(folder) / "model_index.json").get("_class_name"), (str, list)):
            raise ValueError("expected the name of a pipeline in model_index.json, '_class_name', found none.")
        pipeline = PDiffPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(desc="generate", leave=False, disable=not process_state().is_main_process)
    return pipeline.to(default_device())
