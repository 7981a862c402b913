"""What an autoencoder that compares functions makes of a zoo, by its losses, its probe inputs and its latents.

    pdiff collect digits-runs --out runs/digits
    python benchmarks/functional.py runs/digits --seeds 0 1
    python benchmarks/functional.py runs/digits --probes
    python benchmarks/functional.py runs/digits --latents 16 64 256

A row is trained anew for every seed. As many networks as are held out, drawn from the Gaussian of the latents of those
seen, stand beside those held out (`docs/evaluation.md`); numbers are means over the seeds. The ratio by gain 1 is that
of disagreements on validation examples, before the gain made up for what the decoder does not tell apart; the variance
explained is of what held-out networks compute differently, through the autoencoder.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.vectors import split_rows
from pdiff_hf.evaluation.baselines import GaussianOfRows, latent_gaussian
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.evaluation.population import choose_inputs, measure_populations
from pdiff_hf.models.auto import AUTOENCODER
from pdiff_hf.results.population import Population
from pdiff_hf.tasks.evaluators import make_evaluator
from pdiff_hf.tasks.probes import make_probes
from pdiff_hf.training.autoencoder import train_autoencoder

LOSSES: dict[str, dict[str, Any]] = {
    "function 1": {},
    "function 1, task 0.1": {"task_loss": 0.1},
    "function 1, task 1": {"task_loss": 1},
    "task 1": {"function_loss": 0, "task_loss": 1},
    "weights 1, targets seen": {"function_loss": 0, "weight_loss": 1, "targets": "seen"},
    "function 1, weights 0.1": {"weight_loss": 0.1},
}
PROBES: dict[str, dict[str, Any]] = {
    **{f"{number} probes": {"num_probes": number} for number in (30, 100, 300, 1000)},
    "training images as they are": {"probe_mixing": 0, "probe_noise": 0},
    "mixed alone": {"probe_noise": 0},
    "noise alone": {"probe_mixing": 0},
    "noise 0.5": {"probe_noise": 0.5},
}
COLUMNS = {
    "accuracy": "accuracy",
    "accuracy_min": "worst",
    "disagreement_ratio": "disagreement\nratio",
    "iou_ratio": "IoU\nratio",
    "ensemble": "ensemble",
    "near": "near",
    "side": "side",
    "copies": "copies",
    "gain": "gain",
    "ratio_by_gain_1": "ratio by\ngain 1",
    "explained": "variance\nexplained",
    "seconds": "s",
}
PERCENT = {"accuracy", "accuracy_min", "ensemble", "copies"}


def measure(
    dataset: ParameterDataset, evaluator: ParameterEvaluator, options: Mapping[str, Any]
) -> tuple[Population, dict[str, float | None]]:
    """Held-out originals, and by column of [`COLUMNS`] what an autoencoder of these options draws."""
    config = AUTOENCODER.validate({"kind": "functional", "allow_poor_reconstruction": True, **options})
    val, probes = make_evaluator(dataset, "val"), make_probes(dataset, config)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        autoencoder, gate = train_autoencoder(dataset, folder, config, val, probes=probes)
    seconds = time.perf_counter() - begin
    vectors = dataset.vectors(rows=slice(None))
    seen, held_out = split_rows(len(vectors), config.holdout_every)
    gaussian = GaussianOfRows(autoencoder.scale_latents(autoencoder.encode_rows(vectors[seen])))
    generator = torch.Generator().manual_seed(config.seed)
    groups = {"original": vectors, "generated": latent_gaussian(gaussian, autoencoder, len(held_out), generator)}
    inputs = choose_inputs(len(evaluator.labels), evaluator.num_classes, len(vectors) + len(held_out))
    outputs = {name: evaluator.predict(group, keep=inputs) for name, group in groups.items()}
    found = measure_populations(outputs, seen, held_out, evaluator.targets, inputs)
    values = {name: getattr(found["generated"], name, None) for name in COLUMNS}
    values |= {"gain": gate.get("gain"), "explained": gate["explained_variance"], "seconds": seconds}
    if gate.get("seen_disagreement"):
        values["ratio_by_gain_1"] = gate["drawn_disagreement"] / gate["seen_disagreement"]
    return found["original"], values


def cells(found: list[Mapping[str, float | None]]) -> list[str]:
    """Means over the seeds as text."""
    texts = []
    for name in COLUMNS:
        values = [of_seed[name] for of_seed in found if of_seed.get(name) is not None]
        scale, digits = (100, 2) if name in PERCENT else (1, 0 if name == "seconds" else 2)
        texts.append(f"{scale * statistics.mean(values):.{digits}f}" if values else "–")
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="a zoo of one population")
    parser.add_argument("--probes", action="store_true", help="how many probe inputs, and which, instead of losses")
    parser.add_argument("--latents", type=int, nargs="+", default=[], help="how many latents, instead of losses")
    parser.add_argument("--only", nargs="+", help="these rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the autoencoder, all rows")
    arguments = parser.parse_args()
    variants = dict(PROBES) if arguments.probes else {}
    variants |= {f"{number} latents": {"latent_channels": number} for number in arguments.latents}
    variants = variants or LOSSES
    given = {"steps": 1500, "latent_channels": 128, "holdout_every": 6}
    given |= {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in arguments.set)}
    dataset = ParameterDataset(arguments.dataset)
    evaluator = make_evaluator(dataset, "test")
    table = Table("", *COLUMNS.values(), title=f"{arguments.dataset}, seeds {arguments.seeds}")
    for name in arguments.only or variants:
        variant = variants[name]
        found = [measure(dataset, evaluator, {**given, **variant, "seed": seed}) for seed in arguments.seeds]
        if not table.rows:
            table.add_row("originals, held out", *cells([found[0][0].model_dump()]))
        row = [name, *cells([values for _, values in found])]
        table.add_row(*row)
        print(*row, sep="; ", flush=True)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
