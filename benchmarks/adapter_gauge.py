"""What the gauge of LoRA is worth: regression from tasks to adapters, with the same adapters in other gauges.

    pdiff run text-adapters --out runs/text
    python benchmarks/adapter_gauge.py runs/text

Of a run with `collect.kind: tasks` and adapters. The same products BA are written with other factors: as singular
vectors, turned to the first adapter (as datasets have them), and turned to the mean of all (generalised Procrustes
analysis: Gower 1975). For each, ridge regression from the classes of seen tasks to factors, its penalty chosen by
validation tasks, writes adapters for the unseen ones. *Recovered* is (accuracy − majority) / (trained − majority);
intervals are over groups of a task and its complement.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from pdiff_hf.adapters.gauge import canonical_rows
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.evaluation.unseen_tasks.networks import TaskNetworks, task_pairs
from pdiff_hf.evaluation.unseen_tasks.regressions import Predict, ridge
from pdiff_hf.evaluation.unseen_tasks.summary import over_pairs, recovered_share
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.results.text import ReportTable, markdown_table, number, percent
from pdiff_hf.tasks.evaluators import open_task
from pdiff_hf.tasks.unseen_tasks import open_task_networks

PENALTIES = (1e-2, 1e-1, 1.0, 1e1, 1e2)
ROUNDS = 10


def turned_to_mean(layout: ParameterLayout, rows: torch.Tensor) -> torch.Tensor:
    """Rows `(n, D)` turned to their mean, and that again to the mean of what is turned, until it stays."""
    for _ in range(ROUNDS):
        rows = canonical_rows(layout, rows, rows.mean(0))
    return rows


def best_ridge(seen: TaskNetworks, rows: torch.Tensor, validation: TaskNetworks, pairs: bool) -> Predict:
    """Of ridge regressions to rows `(K, D)`, that whose adapters are best on the validation tasks."""
    found = [ridge(seen.conditions, rows, penalty, pairs) for penalty in PENALTIES]
    return max(found, key=lambda predict: validation.predict(predict(validation.distinct)).accuracy.mean().item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with collect.kind=tasks, of adapters")
    args = parser.parse_args()
    dataset = ParameterDataset(args.run / "dataset")
    task, layout = open_task(dataset), dataset.layout
    seen = open_task_networks(dataset, "seen", task)
    validation = open_task_networks(dataset, "validation", task, "val")
    unseen = open_task_networks(dataset, "unseen", task, "test")
    groups = task_pairs(unseen.distinct)
    trained = unseen.mean_by_task(unseen.predict(unseen.vectors, unseen.rows).accuracy, unseen.rows)
    oracle, majority = over_pairs(trained, groups), over_pairs(unseen.majority, groups)
    recorded = seen.vectors[:]
    gauges = {
        "singular vectors": canonical_rows(layout, recorded),
        "turned to the first": recorded,
        "turned to the mean": turned_to_mean(layout, recorded),
    }
    title = f"{len(seen.names)} tasks seen; trained {percent(oracle.mean().item())}, majority "
    title += percent(majority.mean().item())
    table = ReportTable(["gauge", "from classes", "recovered", "and pairs", "recovered"], [], title)
    for name, rows in gauges.items():
        cells = []
        for pairs in (False, True):
            predict = best_ridge(seen, rows, validation, pairs)
            own = over_pairs(unseen.predict(predict(unseen.distinct)).accuracy, groups)
            share, interval = recovered_share(own, oracle, majority)
            cells += [percent(own.mean().item()), number(share, ".3f", interval)]
        table.rows.append([name, *cells])
    print("\n".join(markdown_table(table)))


if __name__ == "__main__":
    main()
