"""Inputs that tell networks apart: on training examples themselves, networks that have learned them agree."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..data.dataset import ParameterDataset
from ..models.config import AutoencoderConfig
from ..wording import setting
from .evaluators import AnyTask, have_own_tasks, open_task
from .function import FunctionTask
from .image_classification import ImageClassification
from .task import Task

# Most inputs are near a training example: by this power of a uniform number they are mixed.
MIXING_POWER = 8
# Images whose spread gives the unit of the noise.
NUM_FOR_SPREAD = 1000


def make_probes(
    dataset: ParameterDataset, config: AutoencoderConfig, task: AnyTask | None = None
) -> ProbeSource | None:
    """Where the inputs of an autoencoder that compares functions come from; `None` of another, or without a task.

    Raises:
        ValueError: the examples of the dataset's task, or the other images, are not where it is said, or it has none;
            or a loss of labels is asked for, and every row has its own.
    """
    if not config.compares_functions or (task := task or open_task(dataset)) is None:
        return None
    if isinstance(task, FunctionTask):
        raise ValueError(
            f"expected a task with examples to compare what networks compute on them, found the function "
            f"{task.config.function}; take an autoencoder of parameters, {setting('autoencoder.kind', 'pca')}, or "
            "name a data set."
        )
    if config.task_loss and have_own_tasks(dataset, task):
        raise ValueError(
            f"expected networks of one task for a loss of its labels, found {dataset.condition_spec.summary}, each a "
            f"task of its own; set {setting('autoencoder.task_loss', '0')}."
        )
    others = None
    if config.probe_dataset is not None:
        if not isinstance(task, ImageClassification):
            raise ValueError(f"expected a task of images for probe_dataset, found one of {task.noun}; leave it out.")
        try:
            others = task.other_images(config.probe_dataset)
        except ValueError as error:
            wrong, right = setting("task.dataset"), setting("autoencoder.probe_dataset")
            raise ValueError(str(error).replace(f"correct {wrong}", f"correct {right}")) from error
    return ProbeSource(task, config.probe_mixing, config.probe_noise, others, config.probe_dataset_share)


@dataclass(frozen=True)
class ProbeSource:
    """Draws inputs near training examples, and between them.

    An image is one of the train split and another one, mixed with a share of `mixing * u^8`, u uniform in [0, 1], plus
    Gaussian noise (source of the mixture: Zhang et al. 2018, "mixup"): most are nearly training examples, on which the
    functions have to be right, and some lie far between, where networks differ. In a text, tokens of such a share are
    another text's at the same places, and each is any other's with probability `noise`; what only one of them has,
    such as padding, stays. Labels play no part.

    Args:
        task ([`Task`]): Whose train split; augmented images are augmented.
        mixing (`float`, *optional*, defaults to 0.5): The largest share of the second example.
        noise (`float`, *optional*, defaults to 0.15): Of images the standard deviation, in units of that of their
            values; of texts the probability.
        others (`torch.Tensor` of shape `(N, C, H, W)`, *optional*): Images of another dataset, prepared as those of
            the task; they are drawn in place of training examples.
        share (`float`, *optional*, defaults to 0.5): Of the inputs that `others` take.
    """

    task: Task
    mixing: float = 0.5
    noise: float = 0.15
    others: torch.Tensor | None = None
    share: float = 0.5

    def draw(self, num: int, seed: int) -> torch.Tensor:
        """Draw inputs `(num, …)`, always the same by a seed."""
        generator = torch.Generator().manual_seed(seed)
        first, second = self._examples(num, seed, generator), self._examples(num, seed + 1, generator)
        if self.others is not None:
            is_other = torch.rand(num, generator=generator) < self.share
            drawn = torch.randint(len(self.others), (num,), generator=generator)
            first = torch.where(is_other.view(num, 1, 1, 1), self.others[drawn], first)
        shares = self.mixing * torch.rand(num, generator=generator) ** MIXING_POWER
        if first.is_floating_point():
            shares = shares.view(num, *[1] * (first.ndim - 1))
            spread = first[:NUM_FOR_SPREAD].std()
            return torch.lerp(first, second, shares) + self.noise * spread * torch.randn(
                first.shape, generator=generator
            )
        return self._mix_tokens(first, second, shares, generator)

    def labelled(self, num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw training examples `(num, …)` as they are and their labels `(num,)`, always the same by a seed."""
        inputs, labels = self.task.arrays("train")
        index = torch.randint(len(labels), (num,), generator=torch.Generator().manual_seed(seed))
        return inputs[index], labels[index]

    def _examples(self, num: int, seed: int, generator: torch.Generator) -> torch.Tensor:
        if not self.task.is_augmented:
            inputs, _ = self.task.arrays("train")
            return inputs[torch.randint(len(inputs), (num,), generator=generator)]
        drawn, epoch = [], 0
        while sum(map(len, drawn)) < num:
            for inputs, _ in self.task.batches("train", num, seed, epoch):
                drawn.append(inputs)
                if sum(map(len, drawn)) >= num:
                    break
            epoch += 1
        return torch.cat(drawn)[:num]

    def _mix_tokens(
        self, first: torch.Tensor, second: torch.Tensor, shares: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        # Padding is what the longest text alone may lack: the token that ends most of the texts.
        padding = first[:, -1].mode().values
        is_text = (first != padding) & (second != padding)
        # The first token, which may stand for the whole text, is every text's.
        is_text[:, 0] = False
        taken = is_text & (torch.rand(first.shape, generator=generator) < shares[:, None])
        mixed = torch.where(taken, second, first)
        other = mixed.flatten()[torch.randint(mixed.numel(), mixed.shape, generator=generator)]
        is_noise = is_text & (torch.rand(first.shape, generator=generator) < self.noise) & (other != padding)
        return torch.where(is_noise, other, mixed)
