"""Settings of base training and collection, the sections `base_training` and `collect` of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel as PydanticModel
from pydantic import ConfigDict, Field, model_validator

# Wang et al. 2024, arXiv 2402.13144, v3: a subset is trained on with a higher learning rate than the whole network.
SUBSET_LEARNING_RATE = 3e-2
WHOLE_LEARNING_RATE = 3e-3


class CollectConfig(PydanticModel):
    """The recipe's `collect` section; a constant learning rate, and the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid")

    select: str | list[str] = Field("last_norms:2", description="`all`, `last_norms:K`, `head`, or globs on names")
    buffers: bool = Field(False, description="also collect the running statistics of the selected norm layers")
    num_checkpoints: int = Field(
        300, ge=1, description="of each run; 1 with `independent`: the trained networks themselves"
    )
    every: int = Field(1, ge=1, description="steps between checkpoints")
    burn_in: int = Field(0, ge=0, description="steps of each run before those, while the optimizer settles")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="sgd has a momentum of 0.9")
    learning_rate: float | None = Field(None, gt=0, description="null: 3e-2 for a subset, 3e-3 for the whole network")
    weight_decay: float = Field(5e-4, ge=0)
    train_batch_size: int = Field(128, ge=1)
    runs: int = Field(1, ge=1, description="each continues from the base model with another order of the images")
    independent: bool = Field(False, description="every further run starts from a base model of its own")
    align: Literal["none", "permutation"] = Field(
        "none", description="permutation: hidden units of all rows in a common order, see docs/align.md"
    )

    @model_validator(mode="after")
    def _check_rows(self) -> CollectConfig:
        if self.num_checkpoints == 1 and not (self.independent and self.runs > 1):
            raise ValueError(
                f"expected num_checkpoints of 2 or more, found 1 with runs={self.runs} and independent="
                f"{str(self.independent).lower()}; set independent=true and runs for one network a run"
            )
        return self

    @property
    def num_steps(self) -> int:
        """Training steps of each run."""
        return self.burn_in + self.every * self.num_checkpoints

    @property
    def takes_trained_networks(self) -> bool:
        """Whether a run's only row is its base model, not a checkpoint of training it on."""
        return self.independent and self.num_checkpoints == 1


class BaseTrainingConfig(PydanticModel):
    """The recipe's `base_training` section; AdamW with a cosine schedule, the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid")

    epochs: int = Field(10, ge=0, description="0: the base model is already trained")
    learning_rate: float = Field(5e-4, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    train_batch_size: int = Field(128, ge=1)
    mixed_precision: Literal["no", "bf16"] = "no"
    seed: int = Field(0, ge=0)
