"""Small networks of independent initialisations, which compute different functions, and a dataset of them."""

import torch

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.networks import mlp3
from pdiff_hf.tasks.auto import load_task
from pdiff_hf.tasks.config import ImageClassificationConfig

NETWORK = {"in_features": 64, "hidden": (6, 5), "num_classes": 10}
FUNCTIONAL = {
    "kind": "functional",
    "steps": 12,
    "train_batch_size": 8,
    "lr_warmup_steps": 0,
    "latent_channels": 6,
    "hidden": (16,),
    "rank": 4,
    "num_probes": 30,
    "inputs_per_step": 16,
    "pool_size": 64,
    "pool_steps": 5,
    "min_explained_variance": -1e9,
    "max_accuracy_drop": 1.0,
    "allow_poor_reconstruction": True,
}


def make_network(seed):
    torch.manual_seed(seed)
    network = mlp3(**NETWORK)
    with torch.no_grad():
        # Untrained, they would hardly differ.
        for parameter in network.parameters():
            parameter.mul_(2)
    return network


def make_layout():
    return ParameterLayout.from_model(make_network(0))


def make_vectors(num=20):
    return torch.stack([make_layout().flatten(make_network(seed)) for seed in range(num)])


def make_images(num=30):
    return load_task(ImageClassificationConfig()).arrays("train")[0][:num]


def make_zoo(folder, num=20):
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK).save_weights(
        make_network(0), folder / "source"
    )
    metadata = {"task": ImageClassificationConfig().model_dump(mode="json")}
    columns = {"run": [f"run-{row}" for row in range(num)]}
    save_parameter_dataset(make_vectors(num), make_layout(), folder / "dataset", base, columns, metadata)
    return folder / "dataset"
