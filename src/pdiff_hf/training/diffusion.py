"""Stage 2: autoencoder folder + parameter dataset → pipeline folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from accelerate import Accelerator

from ..data.dataset import ParameterDataset
from ..data.vectors import split_rows
from ..files import read_json, replacing, sha256_file, write_json
from ..identity import check_same_network, read_identity
from ..machine import one_writer, precision_of
from ..models.auto import connect_network, load_autoencoder
from ..models.condition_encoder import ConditionEncoder
from ..models.config import AutoencoderConfig, DiffusionConfig
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..results.metrics import DENOISER_FILE
from .checkpoints import writing
from .denoiser import as_denoiser, take, train_denoiser
from .logs import write_log
from .loop import make_accelerator
from .losses import compare_with_gaussians, compare_with_regression, denoising_losses
from .rows import condition_units, read_holdout_every


@precision_of("evaluation")
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

    The rows that the gate of the autoencoder holds out are held out from the denoiser, too: by them it is compared
    with Gaussians, see [`compare_with_gaussians`]. Where it is told conditions, these Gaussians are not, but the one
    around a regression of the condition is, see [`compare_with_regression`].

    Args:
        dataset ([`ParameterDataset`], `str` or `Path`): The parameter dataset the autoencoder was trained on.
        autoencoder_dir (`str` or `Path`): What [`train_autoencoder`] has written.
        output_dir (`str` or `Path`): Receives the pipeline, its log and config, and `denoiser.json`.
        config ([`DiffusionConfig`]): Hyper-parameters.
        resume_from_checkpoint (`str`, *optional*): A checkpoint folder or `"latest"`.
        accelerator ([`accelerate.Accelerator`], *optional*): Made from the config when absent.

    Returns:
        [`PDiffPipeline`]: in eval mode.

    Raises:
        ValueError: the autoencoder was trained for another network, invalid rows in the dataset, or it has no
            conditions and the config wants them.
    """
    dataset = ParameterDataset.of(dataset)
    autoencoder = load_autoencoder(autoencoder_dir)
    advice = "give the dataset the autoencoder was trained on, or train another one"
    check_same_network(dataset.identity, read_identity(autoencoder_dir), advice)
    spec = dataset.condition_spec
    has_conditions = config.uses_conditions(spec)
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    accelerator = accelerator or make_accelerator(config, output_dir)

    # 1. Latents, encoded once
    autoencoder = autoencoder.to(accelerator.device)
    connect_network(autoencoder, dataset.base_model)
    latents = autoencoder.scale_latents(autoencoder.encode_rows(dataset.vectors()))

    # 2. Denoiser, on the rows that the autoencoder was trained on
    trained_by = read_json(Path(autoencoder_dir) / "train_config.json")
    holdout_every = (
        read_holdout_every(Path(autoencoder_dir)) or AutoencoderConfig.model_fields["holdout_every"].default
    )
    train_rows, heldout_rows = split_rows(len(latents), holdout_every)
    train, runs = latents[train_rows.to(latents.device)], dataset.order.by_run(train_rows.tolist())
    encoder = labels = units = None
    if has_conditions:
        is_partial = config.partial_conditions > 0
        encoder, stored = ConditionEncoder(**spec.to_dict(), partial=is_partial).eval(), dataset.conditions()
        encoder.fit(stored[train_rows])
        labels = encoder(stored).to(accelerator.device)
        units = condition_units(labels, spec)
    weights = sorted(Path(autoencoder_dir).glob("*.safetensors"))
    sources = {"autoencoder": " ".join(map(sha256_file, weights)), "number of rows": len(latents)}
    if labels is not None:
        sources["conditions"] = hashlib.sha256(labels.cpu().numpy().tobytes()).hexdigest()
    unet, scheduler, record, history = train_denoiser(
        accelerator,
        train,
        runs,
        config,
        output_dir,
        resume_from_checkpoint,
        sources,
        conditions=take(labels, train_rows),
        units=take(units, train_rows),
        partial=None if encoder is None else encoder.partial,
    )

    # 3. What it has learned of the others
    record["held_out"] = {}
    if len(heldout_rows):
        heldout = latents[heldout_rows.to(latents.device)]
        own = take(labels, heldout_rows)
        record["held_out"]["between"] = compare_with_gaussians(as_denoiser(unet, own), train, heldout, scheduler)
        if own is not None:
            record["held_out"]["between"] |= compare_with_regression(unet, own, heldout, scheduler)
            others = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(0)).to(own.device)]
            for name, told in (("unconditioned", None), ("shuffled", others)):
                losses = denoising_losses(as_denoiser(unet, told), heldout, scheduler)
                record["held_out"]["between"][name] = losses.mean().item()

    # 4. Pipeline
    pipeline = PDiffPipeline(autoencoder, unet, scheduler, condition_encoder=encoder)
    pipeline.base_model = dataset.base_model
    with writing(accelerator, f"the pipeline in {output_dir}", output_dir):
        if accelerator.is_main_process:
            with replacing(output_dir) as folder:
                pipeline.save_pretrained(folder)
                write_json(folder / "train_config.json", {**trained_by, "diffusion": config.model_dump(mode="json")})
                write_json(folder / DENOISER_FILE, record)
                write_log(folder, history)
    return pipeline
