"""The model of `metrics.json`: what an evaluation has found, read and written here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from ..files import read_json, write_json
from .metric import Metric
from .population import Population
from .records import (
    Denoiser,
    Difference,
    Distribution,
    Ensemble,
    GroupMetrics,
    Merge,
    Record,
    SelectedDifference,
)
from .tasks import TaskResults

METRICS_FILE = "metrics.json"
TRAJECTORY_FILE = "trajectory.json"
# Of a pipeline, beside its components.
DENOISER_FILE = "denoiser.json"
# What a pipeline folder says of its training.
TRAINED_FILES = ("train_config.json", DENOISER_FILE)
SCHEMA = 2
# Schema 1 is that of 0.1: nothing of the denoiser and of distributions, and all originals were taken for independent.
READABLE = (1, SCHEMA)

INTERVALS = (
    "Intervals are 95 %: of a mean accuracy or NLL, over test examples and networks (Student's t); of one network, "
    "over test examples alone, exact (Clopper-Pearson); of a share, exact, over networks; of ECE, IoU, distances and "
    "other similarities, Student's t over networks alone: test examples and originals are taken as they are; of "
    "ensembles, over test examples and draws of their members. Another network is another draw of the same generator "
    "or another checkpoint of the same runs, not another training of either. Checkpoints of one run depend on each "
    "other and count as fewer independent ones. Differences are paired on the same test examples, so they are surer "
    "than two separate intervals suggest."
)

SCORE_INTERVALS = (
    "Intervals are 95 %: of a mean score, over networks, and over examples where each has a score of its own "
    "(Student's t); of one network, over examples alone, and there is none of a single number; of a share, exact, "
    "over networks; of distances and other similarities, Student's t over networks alone: originals are taken as they "
    "are. Another network is another draw of the same generator or another checkpoint of the same runs, not another "
    "training of either. Checkpoints of one run depend on each other and count as fewer independent ones. Differences "
    "are paired on the same examples, so they are surer than two separate intervals suggest."
)

SEED_INTERVALS = (
    "Every number is the mean over the seeds, every interval the 95 % interval of this mean by Student's t over the "
    "seeds, so it is wide for few seeds."
)

TASK_INTERVALS = (
    "Intervals are 95 %, Student's t over the unseen tasks, of which a subset and its complement count as one; test "
    "examples are taken as they are. Differences are paired over tasks. Another task is another draw of the tasks, "
    "not another training of the generator."
)

# What groups are to each other and what sentences call them; files of 0.1 do not say it of their groups.
ROLES_OF_0_1 = {
    "original": ("original", "originals"),
    "generated": ("generated", "generated networks"),
    "average_16": ("average", "averages of 16 originals"),
    "uniform_soup": ("average", "the uniform soup of all originals"),
    "greedy_soup": ("average", "the greedy soup of originals"),
    "fine_tuned": ("rival", "fine-tuning for the same time"),
}


class Metrics(Record):
    """The content of `metrics.json`."""

    version: int = Field(SCHEMA, alias="schema")
    """Of the format."""
    num_parameters: int | None = None
    """Generated parameters D."""
    num_test: int | None = None
    """Test examples."""
    metric: Metric = Metric()
    """What networks are judged by; not written of accuracy."""
    groups: dict[str, GroupMetrics] = Field(default_factory=dict)
    """By name, in the order of the report."""
    comparisons: dict[str, Difference] = Field(default_factory=dict)
    """Mean test accuracy of `generated` minus that of a group."""
    selected_comparisons: dict[str, SelectedDifference] = Field(default_factory=dict)
    """The same for the selected network of `generated` and that of a group."""
    soup_comparisons: dict[str, Difference] = Field(default_factory=dict)
    """Test accuracy of a soup of generated networks minus that of the same soup of originals, by the latter's name."""
    ensembles: dict[str, dict[str, Ensemble]] = Field(default_factory=dict)
    """By group, and by the number of networks; `best_single` is the best on val among originals and generated."""
    denoiser: Denoiser | None = None
    """What the denoiser has learned; not in schema 1."""
    distribution: dict[str, Distribution] = Field(default_factory=dict)
    """By group, whether it is drawn from the distribution of the originals; not in schema 1."""
    population: dict[str, Population] = Field(default_factory=dict)
    """By group, what it is as a population beside held-out originals of other runs; not in schema 1, and not of one
    trajectory, whose held-out rows are neighbours of those seen."""
    merges: dict[str, Merge] = Field(default_factory=dict)
    """Of adapters, by name the ways to merge them; the exact mean, which is no network of the layout, among them."""
    tasks: TaskResults | None = None
    """Networks for unseen tasks beside other ways to them, of `collect.kind: tasks`; such metrics have no `groups`."""
    finding: str | None = None
    """`copying`, `worse`, `no_gain`, `averaging`, `better`, or `none` without generated networks; with `population`
    `copying`, `collapsed`, `worse`, `less_diverse`, `more_diverse` or `equal_population`; with `tasks`
    `no_better_than_weights`, `no_better_than_latents` or `better_than_latents`."""
    verdict: str = ""
    """The finding as one sentence."""
    seed: int | None = None
    """Of the baselines' draws, the ensembles and the bootstrap."""
    task: dict[str, Any] = Field(default_factory=dict)
    """What was learned: dataset, splits and their sizes, preprocessing, class names."""
    timings_s: dict[str, float | None] = Field(default_factory=dict)
    """Wall time by stage."""
    peak_rss_mb: dict[str, float | None] = Field(default_factory=dict)
    """Peak memory of the process up to the end of a stage."""
    peak_device_mb: dict[str, float | None] = Field(default_factory=dict)
    """Peak memory of tensors on the accelerator within a stage; empty without one."""
    versions: dict[str, str | None] = Field(default_factory=dict)
    """Of the packages that matter."""
    hardware: dict[str, Any] | None = None
    """Of the evaluation: `cpu`, `cores` that the process may use, `memory_gb` (GiB), `accelerator`, `device`; of an
    accelerator `device_memory_gb` (GiB) and `tf32`, whether training and evaluation may use it."""
    date: str | None = None
    """Of the evaluation, UTC."""
    seeds: list[int] | None = None
    """Of the runs that are reported together, see [`aggregate_seeds`]."""

    @model_validator(mode="after")
    def _know_groups_of_0_1(self) -> Metrics:
        for name, group in self.groups.items():
            if group.role is None and name in ROLES_OF_0_1:
                group.role, group.description = ROLES_OF_0_1[name]
        return self

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str | Path = METRICS_FILE) -> Metrics:
        """Check the content of a file; raises `ValueError` for another schema, or a value of another kind."""
        if not isinstance(values, Mapping) or values.get("schema", SCHEMA) not in READABLE:
            found = f"schema {values.get('schema')!r}" if isinstance(values, Mapping) else type(values).__name__
            raise ValueError(
                f"{name}: expected metrics of schema {' or '.join(map(str, READABLE))}, found {found}; update "
                "pdiff-hf to read it."
            )
        return cls.parse(values, name)

    @classmethod
    def read(cls, path: str | Path) -> Metrics:
        """Read a `metrics.json`, also one that 0.1 wrote; raises `ValueError` for a file that is no such one."""
        return cls.from_dict(read_json(path), path)

    def write(self, path: str | Path) -> None:
        """Write a `metrics.json` atomically; raises `ValueError` for a number that is not finite."""
        write_json(path, self.to_dict())

    @property
    def intervals(self) -> str:
        """What the intervals are over, as sentences."""
        if self.tasks is not None:
            return TASK_INTERVALS
        if self.seeds is not None:
            return SEED_INTERVALS
        return INTERVALS if self.metric.is_accuracy else SCORE_INTERVALS

    @property
    def original(self) -> GroupMetrics:
        """The originals; a group of which nothing is known when there are none."""
        return self.groups.get("original", GroupMetrics())

    @property
    def generated(self) -> GroupMetrics:
        """The generated networks; a group of which nothing is known when there are none."""
        return self.groups.get("generated", GroupMetrics())

    @property
    def yardstick(self) -> float | None:
        """The mean distance of an original to the nearest independent one."""
        return self.original.similarity.yardstick

    def rivals(self) -> dict[str, GroupMetrics]:
        """Groups that the generated networks are compared with and have to beat, averages of originals first."""
        compared = [(name, group) for name, group in self.groups.items() if name in self.comparisons]
        rivals = [(name, group) for name, group in compared if group.role in ("average", "rival")]
        # Of averages, those of which there are many come before single ones.
        return dict(sorted(rivals, key=lambda item: (item[1].role == "rival", item[1].n == 1)))

    def best_merge(self) -> str | None:
        """The merge of adapters that is best on validation examples; `None` without merges."""
        worth = {name: self.metric.worth(merge.val) for name, merge in self.merges.items() if merge.val is not None}
        return max(worth, key=worth.__getitem__, default=None)

    def hardest_average(self) -> str | None:
        """The average of originals over which the generated networks gain least; `None` without averages."""
        averages = [name for name, group in self.rivals().items() if group.role == "average"]
        compared = {name: self.comparisons[name] for name in averages}
        metric = self.metric
        least = {name: (metric.sign(found), metric.worth(found.difference)) for name, found in compared.items()}
        return min(averages, key=least.__getitem__, default=None)


def read_denoiser(pipeline_dir: str | Path) -> Denoiser:
    """What a pipeline folder says of its denoiser, if it does; raises `ValueError` for a damaged `denoiser.json`."""
    path = Path(pipeline_dir) / DENOISER_FILE
    return Denoiser.parse(read_json(path), path) if path.is_file() else Denoiser()
