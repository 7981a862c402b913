"""Host memory of the evaluation of whole networks, all groups of it, as a multiple of one network.

    python benchmarks/evaluation_memory.py                        # D = 9.5e6, K = 30; 6 GB of disk
    python benchmarks/evaluation_memory.py --width 256 --rows 60

Checkpoints are synthetic, a random walk from a vision transformer for the digits; quality is not measured. The run
goes the ordinary way, and `evaluate_run` in a process of its own. What is there before, imports of all libraries, does
not count. Beside it stands what all groups would take at once, and what the peak would be at D = 86e6.
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
# Parameters of ViT-Base, and the memory in GB that 100 of them may take.
VIT_BASE, MOST_GB = 86e6, 8


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="of the transformer; D grows with its square")
    parser.add_argument("--rows", type=int, default=30, help="originals, and generated networks")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_run(Path(temporary), arguments.width, arguments.rows)
        found = measure("evaluate", folder=folder)
        metrics = Metrics.read(folder / "report" / "metrics.json")
    network = 4 * metrics.num_parameters / 1e9
    networks = sum(group.n for group in metrics.groups.values())
    peak = found["peak_gb"] - found["imports_gb"]
    table = Table(title=f"evaluation of K = {arguments.rows} networks with D = {metrics.num_parameters:,}")
    for column in ("what", "GB", "networks"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, gigabytes in (
        ("one network", network),
        ("one group", arguments.rows * network),
        (f"all {len(metrics.groups)} groups", networks * network),
        ("peak of the evaluation", peak),
        ("imports", found["imports_gb"]),
        (
            f"peak and imports, at D = {VIT_BASE:.3g} (at most {MOST_GB} GB)",
            found["imports_gb"] + peak / network * 4e-9 * VIT_BASE,
        ),
    ):
        table.add_row(name, f"{gigabytes:.2f}", f"{gigabytes / network:.1f}")
    console = Console()
    console.print(table)
    console.print(f"{found['seconds']:.0f} s")


if __name__ == "__main__":
    main()
