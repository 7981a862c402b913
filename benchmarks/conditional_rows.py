"""What the benchmarks of conditional generation share: networks of tasks, latents, and what needs no diffusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pdiff_hf import PDiffPipeline
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.vectors import split_rows
from pdiff_hf.evaluation.intervals import sample_mean_interval
from pdiff_hf.files import read_json
from pdiff_hf.models.auto import AUTOENCODER, DENOISER, connect_network
from pdiff_hf.pipelines.sampling import load_pipeline, make_scheduler
from pdiff_hf.runs.stages import autoencoder_stage, diffusion_stage
from pdiff_hf.runs.validation import parse_section
from pdiff_hf.tasks.evaluators import open_task

ALPHAS = [10.0**power for power in range(-3, 4)]
STEPS = 20


@dataclass(frozen=True)
class Latents:
    """A pipeline with latents of the rows that it was trained on `(K, d)` and their conditions `(K, size)`."""

    pipe: PDiffPipeline
    rows: torch.Tensor
    conditions: torch.Tensor

    @classmethod
    def read(cls, pipe: PDiffPipeline, dataset: ParameterDataset, holdout_every: int) -> Latents:
        """Those of a dataset without every so manyth row."""
        connect_network(pipe.autoencoder, dataset.base_model)
        pipe.scheduler = make_scheduler("dpmsolver++", pipe.scheduler, STEPS)
        train, _ = split_rows(len(dataset), holdout_every)
        found = cls(pipe, torch.empty(0), dataset.conditions()[train])
        return cls(pipe, found.encode(dataset.vectors()[train]), found.conditions)

    @torch.no_grad()
    def encode(self, vectors: torch.Tensor) -> torch.Tensor:
        """Scaled latents `(B, d)`."""
        autoencoder = self.pipe.autoencoder
        return autoencoder.scale_latents(autoencoder.encode_rows(vectors)).flatten(1)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Networks `(B, D)`."""
        autoencoder = self.pipe.autoencoder
        scaled = autoencoder.unscale_latents(latents.view(-1, *autoencoder.latent_shape))
        return torch.cat([*autoencoder.decode_rows(scaled)])

    def draw(self, embeds: torch.Tensor, seed: int, guidance_scale: float = 1.0) -> torch.Tensor:
        """A network for each row of class labels `(B, n)`: `(B, D)`."""
        generator = torch.Generator().manual_seed(seed)
        options = {"num_inference_steps": STEPS, "generator": generator, "output_type": "pt"}
        options["guidance_scale"] = guidance_scale
        return self.pipe(len(embeds), condition_embeds=embeds, **options).parameters


@dataclass(frozen=True)
class Ridge:
    """Ridge regression of all but the constant, and the covariance of what it leaves `(d, d)`."""

    features: Callable[[torch.Tensor], torch.Tensor]
    weights: torch.Tensor
    covariance: torch.Tensor

    @classmethod
    def fit(cls, features: Callable, conditions: torch.Tensor, targets: torch.Tensor, alpha: float) -> Ridge:
        """Of conditions `(K, n)` to targets `(K, d)`."""
        x, y = features(conditions), targets.double()
        penalty = alpha * torch.eye(x.shape[1], dtype=x.dtype)
        penalty[0, 0] = 0
        weights = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
        return cls(features, weights, (y - x @ weights).T.cov())

    def mean(self, conditions: torch.Tensor) -> torch.Tensor:
        """What it predicts `(B, d)`."""
        return (self.features(conditions) @ self.weights).float()

    def draw(self, conditions: torch.Tensor, seed: int) -> torch.Tensor:
        """Draws of the Gaussian around it `(B, d)`."""
        values, vectors = torch.linalg.eigh(self.covariance)
        noise = torch.randn(len(conditions), len(values), generator=torch.Generator().manual_seed(seed))
        return self.mean(conditions) + ((noise.double() * values.clamp(min=0).sqrt()) @ vectors.T).float()


def linear(values: torch.Tensor) -> torch.Tensor:
    """A constant and the values `(B, 1 + n)`."""
    return torch.cat([torch.ones(len(values), 1), values], 1).double()


def pairs(values: torch.Tensor) -> torch.Tensor:
    """The same, and the products of two of them."""
    first, second = torch.triu_indices(values.shape[1], values.shape[1], 1)
    return torch.cat([linear(values), (values[:, first] * values[:, second]).double()], 1)


def best_ridge(
    features: Sequence[Callable], conditions: torch.Tensor, targets: torch.Tensor, score: Callable[[Ridge], float]
) -> Ridge:
    """The one that is best by its `score`."""
    return max((Ridge.fit(kind, conditions, targets, alpha) for kind in features for alpha in ALPHAS), key=score)


def train_pipeline(run: Path, folder: Path, seed: int) -> PDiffPipeline:
    """A pipeline as that of a run, trained with another seed on the same dataset."""
    dataset, config = ParameterDataset(run / "dataset"), read_json(run / "pipeline" / "train_config.json")
    autoencoder = parse_section(AUTOENCODER, {**config["autoencoder"], "seed": seed})
    diffusion = parse_section(DENOISER, {**config["diffusion"], "seed": seed})
    autoencoder_stage(dataset, folder / "autoencoder", autoencoder, open_task(dataset))
    diffusion_stage(dataset, folder / "autoencoder", folder / "pipeline", diffusion)
    return load_pipeline(folder / "pipeline")


def by_group(values: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
    """Means of values `(T,)` over a task and its complement where both are there: they are no independent draws."""
    keys = [min(tuple(row), tuple(1 - bit for bit in row)) for row in conditions.int().tolist()]
    groups = [[index for index, other in enumerate(keys) if other == key] for key in dict.fromkeys(keys)]
    return torch.stack([values[rows].double().mean() for rows in groups])


def percents(values: torch.Tensor) -> str:
    """Mean of shares in % and its 95 % interval, Student's t."""
    low, high = sample_mean_interval(values.double())
    return f"{100 * values.mean():.2f} ({100 * low:.2f} to {100 * high:.2f})"
