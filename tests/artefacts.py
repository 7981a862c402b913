"""A pipeline and a parameter dataset whose cards are the same everywhere, and their results."""

import json

from factories import NETWORK, make_layout, make_network, make_pipeline, make_vectors
from golden_files import METRICS, check_golden
from pdiff_hf import BaseModel
from pdiff_hf.data.writer import save_parameter_dataset

__all__ = ["METRICS", "check_golden"]
TRAINING = {"diffusion": {"steps": 600, "learning_rate": 0.001, "seed": 0}}
METADATA = {
    "task": {
        "kind": "image_classification",
        "dataset": "/home/somebody/images",
        "test_split": "test",
        "image_size": 2,
    },
    "base_training": {"epochs": 3, "learning_rate": 0.001, "weight_decay": 0.0, "train_batch_size": 16, "seed": 0},
    "collect": {"select": ["1.*", "3.*"], "num_checkpoints": 12, "every": 1, "learning_rate": None},
}


def save_pipeline(folder, base_model=None):
    pipeline = make_pipeline()
    source = folder / "source"
    base_model = base_model or BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK)
    pipeline.base_model = base_model.save_weights(make_network(), source)
    pipeline.save_pretrained(folder / "pipeline")
    (folder / "pipeline" / "train_config.json").write_text(json.dumps(TRAINING))
    return folder / "pipeline"


def save_dataset(folder, metadata=METADATA, base_model=True, run="run-0"):
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK) if base_model else None
    columns = {
        "run": [run] * 12 + ["run-1"] * 12,
        "step": [*range(12), *range(12)],
        "val_accuracy": [0.5 + row / 64 for row in range(24)],
        "train_loss": [1 / (row + 1) for row in range(24)],
    }
    base = base and base.save_weights(make_network(), folder / "source")
    save_parameter_dataset(make_vectors(), make_layout(), folder / "dataset", base, columns, metadata)
    return folder / "dataset"
