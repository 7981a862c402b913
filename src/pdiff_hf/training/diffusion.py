"""Stage 2: autoencoder folder + parameter dataset → pipeline folder."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler

from ..data.dataset import load_base_model
from ..data.vectors import open_vectors
from ..files import read_json, write_json
from ..models import load_autoencoder
from ..models.fast_layers import use_fast_layers
from ..models.unet_1d import make_unet_1d
from ..pipelines.pipeline_pdiff import PDiffPipeline
from .batches import GlobalBatch
from .checkpoints import replacing, writing
from .config import DiffusionConfig
from .history import write_log
from .loop import make_accelerator, run_steps


def train_diffusion(
    dataset_dir: str | Path,
    autoencoder_dir: str | Path,
    output_dir: str | Path,
    config: DiffusionConfig,
    resume_from_checkpoint: str | None = None,
    accelerator: Accelerator | None = None,
) -> PDiffPipeline:
    """Train the denoiser on latents encoded once, and save the whole pipeline.

    The loss is the mean squared error of the predicted noise (Source: Ho et al. 2020, arXiv 2006.11239, eq. 14) or
    velocity (Source: Salimans and Ho 2022, arXiv 2202.00512, appendix D).

    Args:
        dataset_dir (`str` or `Path`): The parameter dataset the autoencoder was trained on.
        autoencoder_dir (`str` or `Path`): What [`train_autoencoder`] has written.
        output_dir (`str` or `Path`): Receives the pipeline, `train_log.jsonl` and `train_config.json`.
        config ([`DiffusionConfig`]): Hyper-parameters.
        resume_from_checkpoint (`str`, *optional*): A checkpoint folder or `"latest"`.
        accelerator ([`accelerate.Accelerator`], *optional*): Made from the config when absent.

    Returns:
        [`PDiffPipeline`]: in eval mode.

    Raises:
        ValueError: the autoencoder was made for another layout, or invalid rows in the dataset.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    accelerator = accelerator or make_accelerator(config, output_dir)
    autoencoder = load_autoencoder(autoencoder_dir)
    vectors, layout = open_vectors(dataset_dir)
    if autoencoder.layout.fingerprint != layout.fingerprint:
        raise ValueError(
            f"the autoencoder has layout {autoencoder.layout.fingerprint[:12]}, the dataset "
            f"{layout.fingerprint[:12]}; train the autoencoder on this dataset."
        )

    # 1. Latents, encoded once
    autoencoder = autoencoder.to(accelerator.device)
    latents = autoencoder.scale_latents(autoencoder.encode_rows(vectors))

    # 2. Denoiser
    torch.manual_seed(config.seed)
    unet = make_unet_1d(*autoencoder.latent_shape, config.block_out_channels, config.layers_per_block)
    use_fast_layers(unet)
    scheduler = DDPMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.beta_schedule,
        prediction_type=config.prediction_type,
        clip_sample=False,
    )

    def loss_fn(model: torch.nn.Module, batch: GlobalBatch) -> torch.Tensor:
        clean = latents[batch.indices.to(latents.device)]
        clean = clean + config.latent_noise * batch.normal(*autoencoder.latent_shape)
        noise = batch.normal(*autoencoder.latent_shape)
        timesteps = batch.integers(config.num_train_timesteps)
        targets = {
            "epsilon": lambda: noise,
            "v_prediction": lambda: scheduler.get_velocity(clean, noise, timesteps),
            "sample": lambda: clean,
        }
        predicted = model(scheduler.add_noise(clean, noise, timesteps), timesteps, return_dict=False)[0]
        return torch.nn.functional.mse_loss(predicted.float(), targets[config.prediction_type]())

    unet, history = run_steps(
        accelerator, unet, len(latents), loss_fn, config, output_dir, "diffusion", resume_from_checkpoint
    )

    # 3. Pipeline
    pipeline = PDiffPipeline(autoencoder, unet, scheduler)
    pipeline.base_model = load_base_model(dataset_dir)
    with writing(accelerator, f"the pipeline in {output_dir}", output_dir):
        if accelerator.is_main_process:
            trained_by = {
                **read_json(Path(autoencoder_dir) / "train_config.json"),
                "diffusion": config.model_dump(mode="json"),
            }
            with replacing(output_dir) as folder:
                pipeline.save_pretrained(folder)
                write_json(folder / "train_config.json", trained_by)
                write_log(folder, history)
    return pipeline
