"""How much faster `ParameterEvaluator` is than full forward passes, with equal logits.

    python benchmarks/evaluation.py                                    # all cases, 10 000 images, 100 networks
    python benchmarks/evaluation.py --cases resnet18 mlp --images 2000

Full forwards are timed on two networks, one before and one after the evaluator's run, and scaled to all networks. The
evaluator's time includes export, split and the prefix. The share is the rate of the tail (multiplications counted by
`torch.utils.flop_counter`) relative to that of `torch.matmul` in the same run; it can exceed 1 where a convolution
skips multiplications with padding.
"""

from __future__ import annotations

import argparse
import copy
import time

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common import matmul_rate
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.machine import peak_memory


def make_mlp() -> nn.Module:
    """The 3-layer MLP of the digits recipe."""
    layers = [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


# name: (model, selection, image shape)
CASES = {
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=10), "last_norms:2", (3, 32, 32)),
    "vit_tiny": (
        lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=4),
        "last_norms:2",
        (3, 32, 32),
    ),
    "convnext_tiny": (lambda: timm.create_model("convnext_tiny", num_classes=10), "last_norms:2", (3, 32, 32)),
    "mlp": (make_mlp, "all", (1, 8, 8)),
}


@torch.no_grad()
def full_forward(model: nn.Module, layout: ParameterLayout, vector: torch.Tensor, images: torch.Tensor, size: int):
    """Logits `(N, classes)` of one network by the definition, and the seconds they took."""
    layout.load_into(model, vector)
    begin = time.perf_counter()
    logits = torch.cat([model(batch) for batch in images.split(size)])
    return logits, time.perf_counter() - begin


def run_case(name: str, num_networks: int, num_images: int, batch_size: int) -> list[str]:
    """One row of the table."""
    make_model, select, shape = CASES[name]
    torch.manual_seed(0)
    model = make_model().eval()
    layout = ParameterLayout.from_model(model, select)
    vectors = layout.flatten(model) + 0.1 * torch.randn(num_networks, layout.num_parameters)
    images, labels = torch.randn(num_images, *shape), torch.randint(10, (num_images,))
    reference = copy.deepcopy(model)
    full_forward(reference, layout, vectors[0], images[:batch_size], batch_size)  # warm-up
    first, seconds_before = full_forward(reference, layout, vectors[0], images, batch_size)

    begin = time.perf_counter()
    evaluator = ParameterEvaluator(model, layout, images, labels, batch_size=batch_size)
    evaluator.predict(vectors)
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    evaluator.predict(vectors)
    tail_seconds = time.perf_counter() - begin

    last, seconds_after = full_forward(reference, layout, vectors[-1], images, batch_size)
    logits = torch.cat([chunk for _, chunk in evaluator.logits(vectors[[0, -1]])])
    error = (logits - torch.stack([first, last])).abs().max().item()
    full_seconds = (seconds_before + seconds_after) / 2
    with FlopCounterMode(display=False) as counter:
        evaluator.predict(vectors[:1])
    share = counter.get_total_flops() * num_networks / tail_seconds / matmul_rate()
    return [
        f"{name}, {select}",
        f"{layout.num_parameters:,}",
        f"{evaluator.num_dependent_nodes} of {evaluator.num_nodes}",
        f"{full_seconds * num_networks:.1f}",
        f"{seconds:.2f}",
        f"{tail_seconds:.2f}",
        f"{full_seconds * num_networks / seconds:.1f}",
        f"{error:.0e}",
        f"{share:.0%}",
    ]


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--networks", type=int, default=100, help="the MLP gets ten times as many")
    parser.add_argument("--images", type=int, default=10_000, help="the MLP gets 500")
    parser.add_argument("--batch_size", type=int, default=500)
    args = parser.parse_args()

    table = Table(title=f"{args.networks} networks x {args.images:,} images, {torch.get_num_threads()} threads")
    columns = (
        "case",
        "D",
        "nodes computed",
        "full forwards (s)",
        "evaluator (s)",
        "again, prefix kept (s)",
        "times faster",
    )
    for column in (*columns, "largest difference", "share of matmul rate"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for name in args.cases:
        is_mlp = name == "mlp"
        table.add_row(
            *run_case(name, args.networks * (10 if is_mlp else 1), 500 if is_mlp else args.images, args.batch_size)
        )
    console = Console(width=150)
    console.print(table)
    peak = peak_memory() / 2**20
    console.print(f"matmul {matmul_rate() / 1e9:.0f} GFLOP/s, peak memory {peak:.0f} MB")


if __name__ == "__main__":
    main()
