"""Host memory of the evaluation of whole networks: as a multiple of one network, and whether their number matters.

    python benchmarks/evaluation_memory.py                                   # D = 9.4e6, K = 10 and 30; 5 GB of disk
    python benchmarks/evaluation_memory.py --width 1536 --rows 6             # D = 85e6 as ViT-Base has; 8 GB of disk

Checkpoints are synthetic, a random walk from a vision transformer for the digits; quality is not measured. The run
goes the ordinary way, and `evaluate_run` in a process of its own. Imports of all libraries are there before. The
autoencoder, a mean and two components as large as a network, is read from its file as it is used, and counts.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common import measure, write_walk
from pdiff_hf.base_model import BaseModel
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.networks import vit_mini
from pdiff_hf.results.metrics import Metrics

NETWORK = {"in_chans": 1, "img_size": 8, "patch_size": 8, "depth": 3, "num_heads": 8, "mlp_ratio": 4}
LATENTS, EXAMPLES = 2, 64


def make_run(folder: Path, width: int, rows: int) -> Path:
    """A complete run but for its evaluation, of networks of this width."""
    network = {**NETWORK, "embed_dim": width}
    model = vit_mini(**network)
    layout = ParameterLayout.from_model(model)
    base = BaseModel.imported("pdiff_hf.tasks.networks:vit_mini", **network).save_weights(model, folder / "source")
    task = {"kind": "image_classification", "dataset": "digits", "val_size": EXAMPLES, "test_size": EXAMPLES}
    write_walk(folder / "dataset", rows, layout, directions=8, base_model=base, task=task)
    pipeline = folder / "pipeline"
    measure(
        "stages",
        autoencoder={
            "dataset": folder / "dataset",
            "output_dir": folder / "autoencoder",
            "config": {
                "kind": "pca",
                "allow_poor_reconstruction": True,
                "latent_channels": LATENTS,
                "holdout_every": 3,
            },
        },
        diffusion={
            "dataset": folder / "dataset",
            "autoencoder_dir": folder / "autoencoder",
            "output_dir": pipeline,
            "config": {"steps": 20, "lr_warmup_steps": 0},
        },
        generate={"pipeline": pipeline, "output_dir": folder / "generated", "num_samples": rows},
    )
    return folder


def evaluate(width: int, rows: int) -> tuple[dict, Metrics]:
    """Seconds and peak memory of an evaluation, and what it found."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_run(Path(temporary), width, rows)
        return measure("evaluate", folder=folder), Metrics.read(folder / "report" / "metrics.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="of the transformer; D grows with its square")
    parser.add_argument("--rows", type=int, nargs="+", default=[10, 30], help="originals, and generated networks")
    arguments = parser.parse_args()
    table = Table(title=f"evaluation of whole networks of width {arguments.width}")
    columns = (
        "D",
        "K",
        "one network, GB",
        "all groups, GB",
        "imports, GB",
        "peak, GB",
        "peak less imports, networks",
        "s",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for rows in arguments.rows:
        found, metrics = evaluate(arguments.width, rows)
        network = 4e-9 * metrics.num_parameters
        networks = sum(group.n for group in metrics.groups.values())
        peak, imports = found["peak_gb"], found["imports_gb"]
        cells = (network, networks * network, imports, peak, (peak - imports) / network)
        table.add_row(
            f"{metrics.num_parameters:,}", str(rows), *(f"{cell:.2f}" for cell in cells), f"{found['seconds']:.0f}"
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
