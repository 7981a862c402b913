"""Generated networks as a folder: one safetensors file each and `index.json`."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .files import read_json, write_json
from .layout import ParameterLayout
from .pipelines import PDiffPipeline

SCHEMA = 1

# `dpmsolver++` is DPMSolverMultistepScheduler's default algorithm (Source: Lu et al. 2022, arXiv 2211.01095).
SCHEDULERS = {"dpmsolver++": DPMSolverMultistepScheduler, "ddim": DDIMScheduler, "ddpm": DDPMScheduler}

# Networks sampled at once; memory for their vectors is bounded by the pipeline's decoding.
BATCH = 256


def generate_networks(
    pipeline: PDiffPipeline,
    output_dir: str | Path,
    num_samples: int = 100,
    num_inference_steps: int = 20,
    scheduler: str = "dpmsolver++",
    truncation: float = 1.0,
    seed: int = 0,
) -> Path:
    """Generate networks and write them to a new folder, which appears under its name when it is complete.

    Args:
        pipeline ([`PDiffPipeline`]): Trained.
        output_dir (`str` or `Path`): New or empty folder.
        num_samples (`int`, *optional*, defaults to 100): Number of networks.
        num_inference_steps (`int`, *optional*, defaults to 20): Denoising steps.
        scheduler (`str`, *optional*, defaults to `"dpmsolver++"`): `"dpmsolver++"`, `"ddim"` or `"ddpm"`.
        truncation (`float`, *optional*, defaults to 1.0): See [`PDiffPipeline`].
        seed (`int`, *optional*, defaults to 0): Of the noise.

    Raises:
        ValueError: the folder is not empty, or an option is invalid.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise ValueError(f"expected an empty or new folder for the networks, found that {output_dir} holds files.")
    if scheduler not in SCHEDULERS:
        raise ValueError(f"scheduler must be one of {sorted(SCHEDULERS)}, got {scheduler!r}.")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
    partial = output_dir.with_name(f".{output_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    pipeline.scheduler = SCHEDULERS[scheduler].from_config(pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(seed)
    files = []
    for start in range(0, num_samples, BATCH):
        states = pipeline(
            batch_size=min(BATCH, num_samples - start),
            num_inference_steps=num_inference_steps,
            generator=generator,
            truncation=truncation,
        ).parameters
        for state in states:
            files.append(f"{len(files):05d}.safetensors")
            tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in state.items()}
            save_file(tensors, partial / files[-1], metadata={"format": "pt"})
    index = {
        "schema": SCHEMA,
        "layout": pipeline.layout.fingerprint,
        "num_parameters": pipeline.layout.num_parameters,
        "seed": seed,
        "scheduler": scheduler,
        "num_inference_steps": num_inference_steps,
        "truncation": truncation,
        "files": files,
    }
    write_json(partial / "index.json", index)
    partial.rename(output_dir)
    return output_dir


def load_pipeline(folder: str | Path) -> PDiffPipeline:
    """Load a pipeline from a local folder onto the accelerator, if there is one, with a quiet progress bar.

    Raises:
        ValueError: the folder holds no pipeline, or a file of it is damaged.
    """
    if not (Path(folder) / "model_index.json").is_file():
        raise ValueError(f"expected a pipeline at {folder}, found no model_index.json there.")
    try:
        pipeline = PDiffPipeline.from_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder}: {str(error).splitlines()[0]}") from error
    pipeline.set_progress_bar_config(desc="generate", leave=False)
    return pipeline.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")


def load_generated(folder: str | Path, layout: ParameterLayout) -> torch.Tensor:
    """Read a folder of generated networks as vectors `(n, D)`.

    Raises:
        ValueError: a file is missing, damaged or does not fit the layout; names the file and the tensor.
    """
    index = read_json(Path(folder) / "index.json")
    if index.get("layout") != layout.fingerprint:
        raise ValueError(
            f"{folder}: expected networks of layout {layout.fingerprint[:12]}, found {index.get('layout')}."
        )
    vectors = torch.empty(len(index["files"]), layout.num_parameters)
    for row, name in enumerate(index["files"]):
        path = Path(folder) / name
        if Path(name).name != name or not path.is_file():
            raise ValueError(f"{folder}: index.json names {name!r}, found no such file in the folder.")
        try:
            vectors[row] = layout.flatten(load_file(path))
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
        if not vectors[row].isfinite().all():
            raise ValueError(f"{path}: expected finite values, found NaN or infinity.")
    return vectors
