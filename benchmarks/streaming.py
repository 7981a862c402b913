"""Many networks for many conditions, streamed to disk: networks a second and peak memory.

    pdiff run digits-subsets --out runs/digits-subsets
    python benchmarks/streaming.py runs/digits-subsets/pipeline --networks 100000

A pipeline on classes draws a network for each of so many random subsets into a parameter dataset, as `pdiff generate
--format dataset --conditions FILE` does. Beside it, from the same process: drawing alone, with nothing written, and
writing as many rows of noise alone, both of a tenth of the networks.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from pdiff_hf.data.writer import stream_parameter_dataset
from pdiff_hf.machine import peak_memory
from pdiff_hf.pipelines.pipeline_pdiff import PDiffPipeline
from pdiff_hf.pipelines.sampling import BATCH, load_pipeline, make_scheduler
from pdiff_hf.runs.generate_rows import generate_rows

STEPS = 20


def random_subsets(pipe: PDiffPipeline, num: int) -> list[dict[str, list[str]]]:
    """Conditions, none of them empty."""
    names = pipe.condition_encoder.spec.names
    members = torch.randint(2, (num, len(names)), generator=torch.Generator().manual_seed(0))
    members[:, 0] |= members.sum(1) == 0
    return [{"classes": [name for name, bit in zip(names, row, strict=True) if bit]} for row in members.tolist()]


def draw_alone(pipe: PDiffPipeline, conditions: list) -> None:
    """The same networks, kept nowhere."""
    pipe.scheduler = make_scheduler("dpmsolver++", pipe.scheduler, STEPS)
    for start in range(0, len(conditions), BATCH):
        own = conditions[start : start + BATCH]
        pipe(len(own), num_inference_steps=STEPS, condition=own, output_type="pt")


def write_alone(pipe: PDiffPipeline, num: int, folder: Path) -> None:
    """As many rows of noise."""
    vectors = torch.randn(BATCH, pipe.layout.num_parameters)
    rows = torch.arange(num).split(BATCH)
    batches = ((vectors[: len(own)], {"run": ["noise"] * len(own), "step": own.tolist()}) for own in rows)
    stream_parameter_dataset(batches, pipe.layout, folder, pipe.base_model)


def rate(num: int, do: Callable[[], object]) -> float:
    """Networks a second."""
    begin = time.perf_counter()
    do()
    return num / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path, help="with conditions of kind classes")
    parser.add_argument("--networks", type=int, default=100_000)
    args = parser.parse_args()
    pipe = load_pipeline(args.pipeline)
    pipe.set_progress_bar_config(disable=True)
    conditions, some = random_subsets(pipe, args.networks), max(1, args.networks // 10)
    before = peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "drawn and written": rate(
                args.networks,
                lambda: generate_rows(pipe, Path(folder, "rows"), args.networks, STEPS, condition=conditions),
            )
        }
        peak = peak_memory()
        size = sum(file.stat().st_size for file in Path(folder, "rows").rglob("*") if file.is_file())
        found["drawn alone"] = rate(some, lambda: draw_alone(pipe, conditions[:some]))
        found["written alone"] = rate(some, lambda: write_alone(pipe, some, Path(folder, "noise")))
    table = Table("", "networks/s", title=f"{args.networks:,} networks of {pipe.layout.num_parameters:,} parameters")
    for name, value in found.items():
        table.add_row(name, f"{value:,.0f}")
    console = Console()
    console.print(table)
    console.print(
        f"{torch.get_num_threads()} threads; {size / 2**20:,.0f} MB on disk; peak memory {peak / 2**30:.2f} GB, of it "
        f"{before / 2**30:.2f} before the first network"
    )


if __name__ == "__main__":
    main()
