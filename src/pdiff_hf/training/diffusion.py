"""Stage 2: autoencoder folder + parameter dataset → pipeline folder."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import ModelMixin

from ..data.dataset import ParameterDataset
from ..files import read_json, replacing, sha256_file, write_json
from ..identity import check_same_network, read_identity
from ..machine import default_device, free_memory, one_writer
from ..models.auto import load_autoencoder
from ..models.config import DiffusionConfig
from ..pipelines.pipeline_pdiff import PDiffPipeline
from .batches import GlobalBatch
from .checkpoints import writing
from .logs import write_log
from .loop import make_accelerator, run_steps

# Values of the training data that are there at the same time: the table, its rows as vectors, latents, batches.
COPIES_OF_DATASET = 4
# Weights, gradients, two moments of AdamW and the moving average.
COPIES_OF_WEIGHTS = 5


@one_writer("output_dir")
def train_diffusion(
    dataset: ParameterDataset | str | Path,
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
        dataset ([`ParameterDataset`], `str` or `Path`): The parameter dataset the autoencoder was trained on.
        autoencoder_dir (`str` or `Path`): What [`train_autoencoder`] has written.
        output_dir (`str` or `Path`): Receives the pipeline, `train_log.jsonl` and `train_config.json`.
        config ([`DiffusionConfig`]): Hyper-parameters.
        resume_from_checkpoint (`str`, *optional*): A checkpoint folder or `"latest"`.
        accelerator ([`accelerate.Accelerator`], *optional*): Made from the config when absent.

    Returns:
        [`PDiffPipeline`]: in eval mode.

    Raises:
        ValueError: the autoencoder was trained for another network, or invalid rows in the dataset.
    """
    autoencoder = load_autoencoder(autoencoder_dir)
    dataset = ParameterDataset.of(dataset)
    advice = "give the dataset the autoencoder was trained on, or train another one"
    check_same_network(dataset.identity, read_identity(autoencoder_dir), advice)
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    accelerator = accelerator or make_accelerator(config, output_dir)

    # 1. Latents, encoded once
    autoencoder = autoencoder.to(accelerator.device)
    latents = autoencoder.scale_latents(autoencoder.encode_rows(dataset.vectors()))

    # 2. Denoiser
    torch.manual_seed(config.seed)
    unet, scheduler = config.build(autoencoder.latent_shape), config.build_scheduler()

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

    weights = sorted(Path(autoencoder_dir).glob("*.safetensors"))
    sources = {"autoencoder": " ".join(map(sha256_file, weights)), "number of rows": len(latents)}
    stage = (config, output_dir, "diffusion", resume_from_checkpoint, sources)
    unet, history = run_steps(accelerator, unet, len(latents), loss_fn, *stage)

    # 3. Pipeline
    pipeline = PDiffPipeline(autoencoder, unet, scheduler)
    pipeline.base_model = dataset.base_model
    with writing(accelerator, f"the pipeline in {output_dir}", output_dir):
        if accelerator.is_main_process:
            trained_by = read_json(Path(autoencoder_dir) / "train_config.json")
            with replacing(output_dir) as folder:
                pipeline.save_pretrained(folder)
                write_json(folder / "train_config.json", {**trained_by, "diffusion": config.model_dump(mode="json")})
                write_log(folder, history)
    return pipeline


def unet_training_bytes(unet: ModelMixin, batch_size: int, num_rows: int) -> int:
    """Bytes that training a denoiser, given on the device `meta`, takes at least, beside Python and its libraries.

    Activations that the backward pass needs are counted on a forward pass without values; they are the larger part.
    What the libraries' kernels take on top depends on sizes: on CPUs it was measured to be 0 to 70 %.
    """
    # Views of one tensor are one; kept alive, no other takes its address.
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    shape = (unet.config.in_channels, unet.config.sample_size)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = unet(torch.empty(batch_size, *shape, device="meta"), torch.zeros((), device="meta")).sample
    weights = sum(parameter.nbytes for parameter in unet.parameters())
    for parameter in unet.parameters():
        saved.pop(parameter.untyped_storage()._cdata, None)
    sizes = [storage.nbytes() for storage in saved.values()]
    # The gradient of the widest activation, and the noise, the noisy latents and the prediction of the batch.
    activations = sum(sizes) + max(sizes) + 4 * output.nbytes
    return activations + COPIES_OF_WEIGHTS * weights + COPIES_OF_DATASET * num_rows * 4 * shape[0] * shape[1]


def check_unet_memory(unet: ModelMixin, batch_size: int, num_rows: int) -> None:
    """Compare what training the denoiser takes with the memory that is free.

    Raises:
        ValueError: it does not fit.
    """
    free = free_memory(default_device())
    needed = unet_training_bytes(unet, batch_size, num_rows)
    if needed > free:
        raise ValueError(
            f"a denoiser of {unet.config.in_channels} × {unet.config.sample_size} values needs "
            f"at least {needed / 2**30:.1f} GB with diffusion.train_batch_size={batch_size}, found {free / 2**30:.1f} "
            "GB free; lower it, select fewer tensors, or use an autoencoder."
        )
