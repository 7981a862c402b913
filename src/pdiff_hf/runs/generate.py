"""Generation of networks, of all that are drawn or of the best of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from safetensors import SafetensorError

from ..data.dataset import read_layout
from ..data.vectors import open_vectors
from ..evaluation.baselines import uniform_soup
from ..evaluation.batch_norm import BatchNormEstimator
from ..evaluation.evaluator import CHUNK_BYTES, ParameterEvaluator
from ..evaluation.choice import select_networks
from ..layout import ParameterLayout
from ..machine import process_state
from ..pipelines.network_folder import check_new, write_networks
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..tasks.auto import load_task
from ..tasks.evaluators import load_stored_task
from ..pipelines.sampling import SCHEDULERS
from ..pipelines.sampling import SAMPLERS
from ..pipelines.sampling import BATCH
from ..pipelines.sampling import BATCH_BYTES
from ..pipelines.sampling import batch_seed
from ..pipelines.sampling import draw_gaussian_latents
from ..pipelines.sampling import Draws




# The first rung of a choice is a twentieth of the images, and batches are no larger than that or this.
MAX_BATCH_SIZE = 500
SOUP_FILE = "soup.safetensors"
# Images on which BatchNorm statistics are re-estimated, all classes in proportion.
NUM_TRAIN_IMAGES = 2048


@dataclass(frozen=True)
class SelectionConfig:
    """Which of the networks that are drawn are kept.

    Args:
        dataset (`str` or `Path`): The parameter dataset whose task's images the networks are chosen on.
        split (`str`, *optional*, defaults to `"val"`): The only split that may be chosen on.
        top (`int`, *optional*, defaults to 1): Number of networks to keep.
        soup (`bool`, *optional*, defaults to `False`): Also keep the uniform soup of them.
        reestimate_batch_norm (`bool`, *optional*, defaults to `False`): Re-estimate the BatchNorm statistics that
            depend on the generated tensors, see [`BatchNormEstimator`], before the last ranking.
        trusted_imports (`Sequence[str]`, *optional*): See [`BaseModel.build`].

    Raises:
        ValueError: another split.
    """

    dataset: str | Path
    split: str = "val"
    top: int = 1
    soup: bool = False
    reestimate_batch_norm: bool = False
    trusted_imports: Sequence[str] = ()

    def __post_init__(self):
        if self.split != "val":
            reason = "; what is chosen on test images cannot be reported on them" if self.split == "test" else ""
            raise ValueError(f"expected 'val' as the split to select on, found {self.split!r}{reason}.")
        if self.top < 1:
            raise ValueError(f"top must be at least 1, got {self.top}.")


def generate_networks(
    pipeline: PDiffPipeline,
    output_dir: str | Path,
    num_samples: int = 100,
    num_inference_steps: int = 20,
    scheduler: str = "dpmsolver++",
    truncation: float = 1.0,
    seed: int = 0,
    selection: SelectionConfig | None = None,
    sampler: str = "diffusion",
    dataset_dir: str | Path | None = None,
) -> Path:
    """Generate networks and write them to a new folder, which appears under its name when it is complete.

    Started by `accelerate launch`, the processes share the batches of networks, or with `selection` their evaluation,
    and write the files of one process.

    Args:
        pipeline ([`PDiffPipeline`]): Trained.
        output_dir (`str` or `Path`): New or empty folder.
        num_samples (`int`, *optional*, defaults to 100): Number of networks.
        num_inference_steps (`int`, *optional*, defaults to 20): Denoising steps.
        scheduler (`str`, *optional*, defaults to `"dpmsolver++"`): `"dpmsolver++"`, `"ddim"` or `"ddpm"`.
        truncation (`float`, *optional*, defaults to 1.0): See [`PDiffPipeline`].
        seed (`int`, *optional*, defaults to 0): Of the noise.
        selection ([`SelectionConfig`], *optional*): Write the best networks only, the very best first; all by default.
        sampler (`str`, *optional*, defaults to `"diffusion"`): `"gaussian_latents"` leaves the denoiser out: latents
            are drawn from a normal distribution with the mean and standard deviation of every latent value over the
            encoded dataset, the paper's "VAE sampling instead of diffusion".
        dataset_dir (`str` or `Path`, *optional*): The parameter dataset to encode, for `"gaussian_latents"`.

    Raises:
        ValueError: the folder is not empty, an option is invalid, or the dataset of the selection does not fit.
    """
    output_dir = Path(output_dir)
    check_new(output_dir)
    if scheduler not in SCHEDULERS:
        raise ValueError(f"scheduler must be one of {sorted(SCHEDULERS)}, got {scheduler!r}.")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
    if sampler not in SAMPLERS or (sampler == "gaussian_latents" and dataset_dir is None):
        raise ValueError(f"sampler must be one of {SAMPLERS}, the last with a dataset; got {sampler!r}.")
    selector = None if selection is None else _Selector(pipeline.layout, selection, num_samples)
    pipeline.scheduler = SCHEDULERS[scheduler].from_config(pipeline.scheduler.config)
    index = {
        "seed": seed,
        "scheduler": scheduler,
        "num_inference_steps": num_inference_steps,
        "truncation": truncation,
    }
    if sampler == "gaussian_latents":
        index = {"seed": seed, "sampler": sampler, "truncation": truncation}

    state = process_state()
    batch = max(1, min(BATCH, BATCH_BYTES // (4 * pipeline.layout.num_parameters)))
    batches = torch.arange(num_samples).split(batch)
    own = batches[state.process_index :: state.num_processes]

    def draw(output_type: str, parts: Sequence[torch.Tensor]) -> Iterator[list[dict] | torch.Tensor]:
        for rows in parts:
            number = rows[0].item() // batch
            yield pipeline(
                batch_size=len(rows),
                num_inference_steps=num_inference_steps,
                generator=torch.Generator().manual_seed(batch_seed(seed, number)),
                truncation=truncation,
                output_type=output_type,
            ).parameters

    begin, draws = time.perf_counter(), None
    if sampler == "gaussian_latents":
        draws = Draws(pipeline, draw_gaussian_latents(pipeline, dataset_dir, num_samples, truncation, seed))
    if selector is None:
        states = draw("state_dict", own) if draws is None else map(draws.state_dicts, own)
        shared = {"rows": [row for rows in own for row in rows.tolist()], "num_networks": num_samples}
        write_networks(output_dir, pipeline.layout, itertools.chain.from_iterable(states), index, **shared)
        return output_dir
    if draws is None:
        draws = Draws(pipeline, torch.cat(list(draw("latent", batches))))
    drawn = time.perf_counter()
    states, extra, selected = selector.select(draws)
    seconds = {"draw": drawn - begin, "select": time.perf_counter() - drawn + selector.seconds}
    selected["selection"]["seconds"] = seconds
    write_networks(output_dir, pipeline.layout, states, {**index, **selected}, extra)
    return output_dir








class _Selector:
    """Chooses among the draws of a pipeline; what can be wrong is found before there are any."""

    def __init__(self, layout: ParameterLayout, config: SelectionConfig, num_samples: int):
        if config.top > num_samples:
            raise ValueError(f"expected top of at most num_samples, {num_samples}, found {config.top}.")
        stored, base_model = read_layout(config.dataset)
        if stored.fingerprint != layout.fingerprint:
            raise ValueError(
                f"{config.dataset}: expected the layout of the pipeline, {layout.fingerprint[:12]}, found "
                f"{stored.fingerprint[:12]}; name the dataset that the pipeline was trained on."
            )
        task = load_stored_task(config.dataset)
        if task is None or base_model is None:
            raise ValueError(
                f"{config.dataset} names no task or no base model to select networks with; generate all of them."
            )
        begin = time.perf_counter()
        self._config, self._layout = config, layout
        self._model = base_model.build(config.trusted_imports)
        self._device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        self._evaluator = self._make_evaluator(layout, *task.arrays("val"))
        self._estimator = None
        if config.reestimate_batch_norm:
            size = min(NUM_TRAIN_IMAGES, task.describe()["num_train"])
            train = load_task(task.config.model_copy(update={"train_size": size}), base_model)
            images = train.arrays("train")[0]
            self._estimator = BatchNormEstimator(self._model, layout, images, device=self._device)
            self._final = self._make_evaluator(self._estimator.layout, *task.arrays("val"))
        self.seconds = time.perf_counter() - begin

    def _make_evaluator(
        self, layout: ParameterLayout, images: torch.Tensor, labels: torch.Tensor
    ) -> ParameterEvaluator:
        batch_size = min(MAX_BATCH_SIZE, -(-len(images) // 20))
        return ParameterEvaluator(
            self._model,
            layout,
            images,
            labels,
            batch_size=batch_size,
            device=self._device,
            accelerator=process_state(),
        )

    def _finish(self, vectors: torch.Tensor) -> tuple[ParameterEvaluator, torch.Tensor]:
        """The evaluator of the last rung and what it takes."""
        if self._estimator is None:
            return self._evaluator, vectors
        return self._final, self._estimator.extend(vectors)

    def _state(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        return self._layout.unflatten(vector) if self._estimator is None else self._estimator.state_dict(vector)

    def select(self, draws: Draws) -> tuple[list[dict], dict[str, dict], dict[str, Any]]:
        """State dicts of the chosen networks, further ones by file, and what `index.json` says of them."""
        config = self._config
        chosen = select_networks(self._evaluator, draws, config.top, self._finish)
        selection = {
            "split": config.split,
            "num_drawn": len(draws),
            "num_dropped": chosen.num_dropped,
            "num_val": len(self._evaluator.labels),
            "num_pilots": chosen.num_pilots,
            "rungs": [{"networks": networks, "images": images} for networks, images in chosen.rungs],
            "criterion": "accuracy, ties by nll",
            "val_accuracy": chosen.accuracy.tolist(),
            "val_nll": chosen.nll.tolist(),
            "draws": chosen.rows.tolist(),
        }
        index: dict[str, Any] = {"selection": selection}
        generated = chosen.vectors[:, : self._layout.num_parameters]
        if self._estimator is not None:
            index["batch_norm"] = self._estimator.names
            selection["val_accuracy_before_batch_norm"] = self._evaluator.accuracy(generated).tolist()
        extra = {}
        if config.soup:
            evaluator, soup = self._finish(uniform_soup(generated))
            output = evaluator.predict(soup)
            index["soup"], extra[SOUP_FILE] = SOUP_FILE, self._state(soup[0])
            selection["soup_val_accuracy"], selection["soup_val_nll"] = output.accuracy.item(), output.nll.item()
        return [self._state(vector) for vector in chosen.vectors], extra, index
