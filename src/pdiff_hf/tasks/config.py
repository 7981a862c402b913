"""The sections `task`, `base_training` and `collect` of a recipe: what they say, without what they build."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel as PydanticModel
from pydantic import ConfigDict, Field, field_validator, model_validator

from ..hub.snapshot import local_folder
from ..wording import setting

# Wang et al. 2024, arXiv 2402.13144, v3: a subset is trained on with a higher learning rate than the whole network.
SUBSET_LEARNING_RATE = 3e-2
WHOLE_LEARNING_RATE = 3e-3

Share = Annotated[float, Field(gt=0, le=1)]


class CollectionConfig(PydanticModel):
    """What every kind of `collect` section says; each has `runs`, how many networks are trained, as well."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    select: str | list[str] = Field("last_norms:2", description="`all`, `last_norms:K`, `head`, or globs on names")
    buffers: bool = Field(False, description="also collect the running statistics of the selected norm layers")

    @model_validator(mode="before")
    @classmethod
    def _check_align(cls, values: Any) -> Any:
        """Version 0.1 could put hidden units into a common order; recipes that did not say so mean what is here."""
        if not isinstance(values, Mapping) or "align" not in values:
            return values
        if values["align"] != "none":
            raise ValueError(
                f"expected no key 'align', found {values['align']!r}; take it out, and compare networks by what they "
                "compute, which needs no common order of hidden units: autoencoder.kind=functional"
            )
        return {key: value for key, value in values.items() if key != "align"}

    @property
    @abstractmethod
    def rows_per_run(self) -> int:
        """Checkpoints of every run."""

    @property
    def num_rows(self) -> int:
        """Checkpoints of the dataset that generators are trained on."""
        return self.runs * self.rows_per_run


class ZooConfig(CollectionConfig):
    """What the kinds say of which every run is a training of its own, as `base_training` says."""

    select: str | list[str] = Field(
        "all", description="`all`, `last_norms:K`, `head`, or globs on names; the rest stays as the base model has it"
    )
    at: list[Share] = Field(
        [1.0], min_length=1, description="shares of the training after which a run has a row each, rising"
    )
    metric: list[Literal["val_accuracy", "val_ece", "train_loss", "epoch"]] = Field(
        [], description="columns of the rows that are their condition, or a part of it"
    )

    @field_validator("at")
    @classmethod
    def _check_at(cls, at: list[float]) -> list[float]:
        if any(late <= early for early, late in itertools.pairwise(at)):
            raise ValueError(f"expected rising shares of the training, found {at}; correct collect.at")
        return at

    @field_validator("metric")
    @classmethod
    def _check_metric(cls, metric: list[str]) -> list[str]:
        if len(set(metric)) < len(metric):
            raise ValueError(f"expected every metric once, found {metric}; correct collect.metric")
        return metric


class CollectConfig(CollectionConfig):
    """Checkpoints along a training that goes on from the base model: the recipe's `collect` section by default.

    The defaults are the paper's, which keeps the learning rate constant.
    """

    kind: Literal["trajectory"] = "trajectory"
    num_checkpoints: int = Field(300, ge=1, description="of each run; 2 or more")
    every: int = Field(1, ge=1, description="steps between checkpoints; counted within each cycle")
    burn_in: int = Field(0, ge=0, description="steps of each run before those, while the optimizer settles")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="sgd has a momentum of 0.9")
    learning_rate: float | None = Field(None, gt=0, description="null: 3e-2 for a subset, 3e-3 for the whole network")
    lr_scheduler: Literal["constant", "cyclic"] = Field(
        "constant", description="cyclic: from 0 to learning_rate and back, along a cosine"
    )
    cycle_steps: int | None = Field(None, ge=2, description="steps of a cycle of lr_scheduler=cyclic, which needs it")
    cycle_share: float | None = Field(
        None, gt=0, le=1, description="of each cycle, around its lowest rate, where checkpoints are kept; null: all"
    )
    weight_decay: float = Field(5e-4, ge=0)
    train_batch_size: int = Field(128, ge=1)
    runs: int = Field(1, ge=1, description="each continues from the base model with another order of the images")
    independent: bool = Field(False, description="every further run starts from a base model of its own")

    @field_validator("num_checkpoints")
    @classmethod
    def _check_rows(cls, num_checkpoints: int) -> int:
        if num_checkpoints == 1:
            raise ValueError(
                "expected num_checkpoints of 2 or more, found 1; set collect.kind=runs for one network of every run"
            )
        return num_checkpoints

    @model_validator(mode="after")
    def _check_cycles(self) -> CollectConfig:
        if self.lr_scheduler == "cyclic":
            if self.cycle_steps is None:
                raise ValueError("expected cycle_steps with lr_scheduler=cyclic, found none; set collect.cycle_steps")
            return self
        for key in ("cycle_steps", "cycle_share"):
            if (value := getattr(self, key)) is not None:
                raise ValueError(
                    f"expected {key} with lr_scheduler=cyclic only, found {key}={value} with lr_scheduler="
                    f"{self.lr_scheduler}; set collect.lr_scheduler=cyclic or leave it out"
                )
        return self

    def learning_rate_factor(self, step: int) -> float:
        """Of the learning rate with which step `step + 1` of a run is made.

        `cyclic`: `(1 - cos(2 π step / cycle_steps)) / 2`. Source: cyclical learning rates, which begin at the lowest
        (Smith 2017, arXiv 1506.01186, §3.1), along the cosine of warm restarts (Loshchilov and Hutter 2017,
        arXiv 1608.03983, eq. 5) in both directions.
        """
        if self.lr_scheduler == "constant":
            return 1.0
        return (1 - math.cos(2 * math.pi * (step % self.cycle_steps) / self.cycle_steps)) / 2

    def is_kept(self, step: int) -> bool:
        """Whether there is a checkpoint after so many steps of a run.

        Of cycles those around the lowest learning rates are kept, as fast geometric ensembling does (Garipov et al.
        2018, arXiv 1802.10026, §4); the end of a cycle always is.
        """
        if step <= self.burn_in:
            return False
        if self.lr_scheduler == "constant":
            return (step - self.burn_in) % self.every == 0
        phase = step % self.cycle_steps
        share = 1 if self.cycle_share is None else self.cycle_share
        return phase % self.every == 0 and 2 * min(phase, self.cycle_steps - phase) <= share * self.cycle_steps

    @property
    def num_steps(self) -> int:
        """Training steps of each run: those up to its last checkpoint."""
        if self.lr_scheduler == "constant":
            return self.burn_in + self.every * self.num_checkpoints
        # Every cycle after the burn-in keeps checkpoints after the same number of steps.
        kept = list(filter(self.is_kept, range(self.burn_in + 1, self.burn_in + self.cycle_steps + 1)))
        cycles, place = divmod(self.num_checkpoints - 1, len(kept))
        return kept[place] + cycles * self.cycle_steps

    @property
    def rows_per_run(self) -> int:
        """Checkpoints of every run."""
        return self.num_checkpoints


class BaseTrainingConfig(PydanticModel):
    """The recipe's `base_training` section; AdamW with a cosine schedule, the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid")

    epochs: int = Field(10, ge=0, description="0: the base model is already trained")
    learning_rate: float = Field(5e-4, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    train_batch_size: int = Field(128, ge=1)
    mixed_precision: Literal["no", "bf16"] = "no"
    seed: int = Field(0, ge=0)


class SplitConfig(PydanticModel):
    """What every kind of task says of its dataset and of the three disjoint splits."""

    model_config = ConfigDict(extra="forbid")

    dataset: str
    config_name: str | None = Field(None, description="configuration of a dataset on the Hub")
    train_split: str = "train"
    val_split: str | None = Field(None, description="null: `val_size` examples of the train split")
    test_split: str | None = Field("test", description="null: `test_size` examples of the train split")
    label_column: str = "label"
    train_size: int | None = Field(None, ge=1, description="examples used, all classes in proportion; null: all")
    val_size: int | None = Field(None, ge=1, description="null: a tenth of the train split, or the whole val split")
    test_size: int | None = Field(None, ge=1, description="null: all")
    seed: int = Field(0, ge=0, description="of the splits")
    dataset_fingerprint: str | None = Field(
        None, description="of the content of a folder; recorded, and other content is refused. null: not checked"
    )

    # What a folder holds, and datasets that come with a library.
    files: ClassVar[str]
    embedded: ClassVar[tuple[str, ...]] = ()

    def source_folder(self) -> Path | None:
        """The folder of this machine that `dataset` names, `None` for another dataset.

        Raises:
            ValueError: it should be a folder and is none.
        """
        if self.dataset in self.embedded:
            return None
        folder = local_folder(self.dataset)
        if folder is not None and not folder.is_dir():
            raise ValueError(
                f"expected a folder of {self.files}, found that {self.dataset} does not exist or is a file; correct "
                f"{setting('task.dataset')}"
            )
        return folder

    @property
    def named_splits(self) -> list[str]:
        """The splits of the dataset that are used."""
        return [name for name in (self.train_split, self.val_split, self.test_split) if name is not None]


class ImageClassificationConfig(SplitConfig):
    """The recipe's `task` section for images. What is `null` is chosen by [`ImageClassification`]."""

    files: ClassVar = "images or Parquet files"
    embedded: ClassVar = ("digits",)

    kind: Literal["image_classification"] = "image_classification"
    dataset: str = Field("digits", description="`digits` (embedded), a folder of Parquet files or images, or a Hub id")
    image_column: str | None = Field(None, description="null: the only column with images")
    image_size: int | None = Field(
        None, ge=1, description="pixels; null: the timm family's, else that of the first image"
    )
    in_chans: Literal[1, 3] | None = Field(None, description="null: 3, and 1 for digits")
    mean: tuple[float, ...] | None = Field(None, description="null: the timm family's, else ImageNet's")
    std: tuple[float, ...] | None = Field(None, description="null: the timm family's, else ImageNet's")
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="null: the timm family's, else bicubic"
    )
    crop_pct: float | None = Field(
        None, gt=0, le=1, description="share kept by the centre crop; null: the timm family's"
    )
    augment: Literal["none", "timm"] = Field("none", description="timm: random resized crop, flip and colour jitter")
    num_workers: int = Field(0, ge=0, description="processes that augment images")


class TextClassificationConfig(SplitConfig):
    """The recipe's `task` section for texts. What is `null` is chosen by [`TextClassification`]."""

    files: ClassVar = "Parquet, CSV or JSON lines files"

    kind: Literal["text_classification"] = "text_classification"
    dataset: str = Field(description="a folder of Parquet, CSV or JSON lines files, or a Hub id")
    text_column: str = "text"
    text_pair_column: str | None = Field(None, description="a second text that the label is about")
    tokenizer: str | None = Field(
        None, description="a folder, a Hub id, or `words`: those of the train split; null: that of the base model"
    )
    vocab_size: int = Field(8192, ge=5, description="tokens of the tokenizer `words`")
    max_length: int | None = Field(
        None, ge=3, description="tokens; longer texts are cut. null: those of the longest train text, at most 512"
    )
    vocabulary_sha256: str | None = Field(
        None, description="of the tokens; recorded, and other ones are refused. null: not checked"
    )


class FunctionConfig(PydanticModel):
    """A task that is a function; what is `null` is taken from its attributes `metric` and `higher_is_better`."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["function"] = "function"
    function: str = Field(description="`FILE.py:NAME` or `package.module:NAME`")
    metric: str | None = Field(None, min_length=1, description="null: the function's `metric`, else `score`")
    higher_is_better: bool | None = Field(None, description="null: the function's `higher_is_better`, else true")
