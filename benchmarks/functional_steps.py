"""Steps of the functional autoencoder: their share of the machine's matmul rate, and time and memory for large D.

    python benchmarks/functional_steps.py

Perceptrons on scikit-learn's digits, untrained and of independent initialisations: time and memory are those of
trained ones, quality is not measured. Every size goes through `train_autoencoder` in a process of its own, with the
settings of `digits-runs` and few steps; what a step takes is the slope between two numbers of steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from common import fastest, matmul_rate, peak_gb
from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.models.kinds import AutoencoderFunctionalConfig
from pdiff_hf.networks import mlp3
from pdiff_hf.tasks.config import ImageClassificationConfig
from pdiff_hf.tasks.evaluators import make_gate_evaluator
from pdiff_hf.tasks.probes import make_probes
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.batches import GlobalBatch
from pdiff_hf.training.functional import FunctionObjective

# Hidden widths, rows and required GB: D = 3 466, 26 thousand, 0.3 and 1 million.
SIZES = (((32, 32), 500, None), ((150, 100), 100, None), ((400, 650), 100, 2.0), ((900, 1050), 100, None))
STEPS = (20, 60)
OPEN_GATE = {"min_explained_variance": -1e9, "max_accuracy_drop": 1.0, "allow_poor_reconstruction": True}


def write_zoo(folder: Path, hidden: tuple[int, ...], rows: int) -> Path:
    networks = []
    for seed in range(rows):
        torch.manual_seed(seed)
        networks.append(mlp3(64, hidden))
    layout = ParameterLayout.from_model(networks[0])
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", in_features=64, hidden=list(hidden), num_classes=10)
    metadata = {"task": ImageClassificationConfig().model_dump(mode="json")}
    save_parameter_dataset(
        torch.stack(list(map(layout.flatten, networks))),
        layout,
        folder / "dataset",
        base.save_weights(networks[0], folder / "base"),
        {"run": [f"run-{row}" for row in range(rows)]},
        metadata,
    )
    return folder / "dataset"


def config_of(**options) -> AutoencoderFunctionalConfig:
    return AutoencoderFunctionalConfig(**{"latent_channels": 64, "lr_warmup_steps": 0, **OPEN_GATE, **options})


def share_of_matmul(folder: Path) -> tuple[float, float]:
    """Rate of a step's forward and backward pass relative to `torch.matmul`'s, and milliseconds of a whole step."""
    dataset, config = ParameterDataset(folder), config_of(latent_channels=128)
    vectors, model, probes = dataset.vectors(), dataset.base_model.build(), make_probes(dataset, config)
    autoencoder = config.build(dataset.identity.to_config())
    functions = autoencoder.fit(vectors, probes.draw(config.num_probes, 0), model)
    objective = FunctionObjective(autoencoder, functions, vectors, model, probes, config)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), fused=True)
    batch = GlobalBatch(len(vectors), config.train_batch_size, 0, 0)

    def gradients() -> None:
        objective.loss(autoencoder, *objective.draw(batch)).backward()

    def step() -> None:
        gradients()
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    # The first one computes the pool of inputs.
    gradients()
    with FlopCounterMode(display=False) as counter:
        gradients()
    return counter.get_total_flops() / fastest(gradients, 20) / matmul_rate(1024, 20), 1e3 * fastest(step, 20)


def train(folder: Path, steps: int) -> dict:
    """Seconds and peak memory of the stage, in this process."""
    dataset, config = ParameterDataset(folder), config_of(steps=steps)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        evaluator, probes = make_gate_evaluator(dataset), make_probes(dataset, config)
        autoencoder, _ = train_autoencoder(dataset, output, config, evaluator, probes=probes)
    weights = sum(parameter.numel() for parameter in autoencoder.parameters())
    return {"seconds": time.perf_counter() - begin, "peak_gb": peak_gb(), "weights": weights}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs=2, metavar=("DATASET", "STEPS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        print(json.dumps(train(Path(arguments.train[0]), int(arguments.train[1]))))
        return
    table = Table(title=f"functional autoencoder, batch 32 on 64 inputs, {torch.get_num_threads()} threads")
    for column in ("D", "networks", "decoder's weights", "ms a step", "peak memory, GB", "must reach"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as temporary:
        for hidden, rows, limit in SIZES:
            folder = Path(temporary) / str(hidden[0])
            dataset = write_zoo(folder, hidden, rows)
            words = [sys.executable, str(Path(__file__).resolve()), "--train", str(dataset)]
            found = []
            for steps in STEPS:
                done = subprocess.run([*words, str(steps)], capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr[-2000:])
                found.append(json.loads(done.stdout.splitlines()[-1]))
            ms = 1e3 * (found[1]["seconds"] - found[0]["seconds"]) / (STEPS[1] - STEPS[0])
            values = ParameterDataset(dataset).layout.num_parameters
            peak = max(entry["peak_gb"] for entry in found)
            weights = found[0]["weights"]
            need = "" if limit is None else f"<= {limit:g} GB"
            table.add_row(f"{values:,}", str(rows), f"{weights:,}", f"{ms:.0f}", f"{peak:.2f}", need)
        share, ms = share_of_matmul(Path(temporary) / str(SIZES[0][0][0]) / "dataset")
    console = Console(width=120)
    console.print(table)
    console.print(
        f"share of torch.matmul's rate, D = 3,466, 128 latents: {share:.0%} (must reach 40 %), {ms:.1f} ms a step"
    )


if __name__ == "__main__":
    main()
