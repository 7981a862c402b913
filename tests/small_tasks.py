"""Networks of tasks: vectors that depend linearly on which classes their task has, and on chance."""

import itertools

import torch

from factories import make_layout, make_vectors
from pdiff_hf.conditions import ConditionSpec
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.models.kinds import AutoencoderPCAConfig
from pdiff_hf.training.autoencoder import train_autoencoder

CLASSES = ConditionSpec.named("classes", ["cat", "dog", "frog", "horse", "ship", "truck"])
NUM_UNSEEN, RUNS, SPREAD = 8, 2, 0.1


def all_subsets():
    """Of the classes, but all and none, in a random order `(62, 6)`; the last `NUM_UNSEEN` are never trained on."""
    subsets = torch.tensor([*itertools.product([0.0, 1.0], repeat=CLASSES.size)][1:-1])
    return subsets[torch.randperm(len(subsets), generator=torch.Generator().manual_seed(0))]


def mean_of(subsets):
    """What networks of tasks `(n, 6)` are on average `(n, D)`."""
    directions = torch.randn(CLASSES.size, make_layout().num_parameters, generator=torch.Generator().manual_seed(1))
    return make_vectors(1) + (2 * subsets - 1) @ directions


def make_tasks(folder, shift=0, rows_per_run=1):
    """A parameter dataset of several runs for every subset but the unseen ones; `shift` gives rows those of others."""
    subsets = all_subsets()[:-NUM_UNSEEN].repeat_interleave(RUNS, 0)
    vectors = mean_of(subsets)
    vectors += SPREAD * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2))
    columns = {
        "run": [f"run{row // rows_per_run}" for row in range(len(vectors))],
        "condition": subsets.roll(shift, 0),
    }
    save_parameter_dataset(vectors, make_layout(), folder / "dataset", columns=columns, conditions=CLASSES)
    return ParameterDataset(folder / "dataset")


def train_tasks_autoencoder(folder, **options):
    """Principal components of [`make_tasks`], as a stage."""
    dataset = make_tasks(folder, **options)
    config = AutoencoderPCAConfig(latent_channels=8, allow_poor_reconstruction=True)
    train_autoencoder(dataset, folder / "autoencoder", config)
    return dataset
