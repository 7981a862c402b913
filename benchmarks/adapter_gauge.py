"""What the gauge of LoRA is worth: regression from tasks to adapters, with the same adapters in other gauges.

    pdiff run text-adapters --out runs/text
    python benchmarks/adapter_gauge.py runs/text

Of a run with `collect.kind: tasks` and adapters. The same products BA are written with other factors: as singular
vectors, turned to the first adapter (as datasets have them), and turned to the mean of all (generalised Procrustes
analysis: Gower 1975). For each, ridge regression from the classes of seen tasks to factors, its penalty chosen by
validation tasks, writes adapters for the unseen ones. *Recovered* is (accuracy − majority) / (trained − majority);
intervals are over groups of a task and its complement. *Predicted* is how much of the variance of the unseen tasks'
own adapters, in the same gauge, the regression says.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from pdiff_hf.adapters.gauge import canonical_rows, mean_adapter
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.evaluation.unseen_tasks.networks import TaskNetworks, task_pairs
from pdiff_hf.evaluation.unseen_tasks.regressions import Predict, ridge
from pdiff_hf.evaluation.unseen_tasks.summary import over_pairs, recovered_share
from pdiff_hf.results.text import ReportTable, markdown_table, number, percent
from pdiff_hf.tasks.evaluators import open_task
from pdiff_hf.tasks.unseen_tasks import open_task_networks

PENALTIES = (1e-2, 1e-1, 1.0, 1e1, 1e2)


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
    # What factors are turned to.
    gauges = {
        "singular vectors": None,
        "turned to the first": canonical_rows(layout, recorded[:1])[0],
        "turned to the mean": mean_adapter(layout, recorded),
    }
    title = f"{len(seen.names)} tasks seen; trained {percent(oracle.mean().item())}, majority "
    title += percent(majority.mean().item())
    columns = ("from classes", "recovered", "predicted", "and pairs", "recovered", "predicted")
    table = ReportTable(["gauge", *columns], [], title)
    for name, reference in gauges.items():
        rows, own = (canonical_rows(layout, networks.vectors[:], reference) for networks in (seen, unseen))
        cells = []
        for pairs in (False, True):
            predict = best_ridge(seen, rows, validation, pairs)
            written = predict(unseen.distinct)
            accuracies = over_pairs(unseen.predict(written).accuracy, groups)
            share, interval = recovered_share(accuracies, oracle, majority)
            missed = (written[unseen.rows] - own).square().sum() / (own - rows.mean(0)).square().sum()
            cells += [
                percent(accuracies.mean().item()),
                number(share, ".3f", interval),
                number(1 - missed.item(), ".2f"),
            ]
        table.rows.append([name, *cells])
    print("\n".join(markdown_table(table)))


if __name__ == "__main__":
    main()
