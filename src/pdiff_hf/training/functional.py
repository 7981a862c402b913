"""The loss that the decoder of a functional autoencoder is trained on: what it writes has to compute its target."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..data.dataset import ParameterDataset
from ..evaluation.evaluator import ParameterEvaluator
from ..models.autoencoder_functional import AutoencoderFunctional
from ..models.functions import NetworkFunctions
from ..models.kinds import AutoencoderFunctionalConfig
from ..wording import setting
from .batches import GlobalBatch, upload
from .function_pool import FunctionPool, Probes
from .targets import make_targets


def check_functional_inputs(
    dataset: ParameterDataset, evaluator: ParameterEvaluator | None, probes: Probes | None
) -> nn.Module:
    """The base network of a dataset whose networks are to be compared by what they compute.

    Raises:
        ValueError: the dataset names no base model or no task, so that nothing can be computed.
    """
    if dataset.base_model is None or evaluator is None or probes is None:
        missing = "base model" if dataset.base_model is None else "task"
        raise ValueError(
            f"expected a {missing} in {dataset.folder}, without which nobody knows what its networks compute, found "
            f"none; import or collect it with one, or take {setting('autoencoder.kind', 'pdiff')}."
        )
    return dataset.base_model.build()


class FunctionObjective:
    """The loss of a decoder on targets: functions of networks seen, or made of theirs ([`make_targets`]).

    In a step, there is a target for each network of the batch. The decoder's network is compared with it on inputs
    that are drawn from a pool by how much the networks differ there.

    Args:
        autoencoder ([`AutoencoderFunctional`]): Fitted.
        functions (`torch.Tensor` of shape `(K, P, classes)`): Of the training networks on its probes.
        vectors (`torch.Tensor` of shape `(K, D)`): Their raw parameters, a tensor or [`StoredVectors`].
        model (`nn.Module`): The base network.
        probes ([`Probes`]): Where inputs come from.
        config ([`AutoencoderFunctionalConfig`]): Hyper-parameters.
        class_labels (`torch.Tensor` of shape `(K, classes)`, *optional*): The label of every class in the task of
            every training network, where there are several tasks.

    Raises:
        ValueError: labels are to be learned of combinations of networks of several tasks, which have none.
    """

    def __init__(
        self,
        autoencoder: AutoencoderFunctional,
        functions: torch.Tensor,
        vectors: torch.Tensor,
        model: nn.Module,
        probes: Probes,
        config: AutoencoderFunctionalConfig,
        class_labels: torch.Tensor | None = None,
    ):
        self.config, self.probes, self.vectors, self.class_labels = config, probes, vectors, class_labels
        self.device, self.normalizer, self.encoder = autoencoder.device, autoencoder.normalizer, autoencoder.encoder
        self.targets = make_targets(autoencoder, functions, config, class_labels is not None)
        example = probes.draw(config.inputs_per_step, config.seed)
        self.functions = NetworkFunctions(model, autoencoder.layout, example, self.device)
        self.num_activations = len(self.functions.prefix(example))
        self._pool: tuple[int, FunctionPool] | None = None

    def describe(self) -> dict[str, int]:
        """What is written beside the gate: of how many networks a target is combined, 0 for those seen alone."""
        return {"combined_networks": self.targets.num_combined}

    def draw(self, batch: GlobalBatch) -> Sequence[torch.Tensor]:
        """What one process's share of a batch needs: targets, inputs of the pool and what is due on them.

        They are of the same shapes in every step, whatever pool it is; see [`FunctionObjective.loss`] for the order.
        """
        config, pool, generator = self.config, self._pool_of(batch.step), batch.shared_generator()
        targets = self.targets.draw(batch)
        drawn = [*targets]
        if config.function_loss:
            activations, functions = pool.draw(config.inputs_per_step, generator)
            drawn += [functions, *activations]
        if config.task_loss:
            activations, labels = pool.draw_labelled(config.inputs_per_step, generator)
            labels = labels.expand(len(batch.indices), -1)
            if self.class_labels is not None:
                (own,) = upload([self.class_labels[batch.indices]], self.device)
                labels = own.gather(1, labels)
            drawn += [labels, *activations]
        if config.weight_loss:
            drawn.append(self.targets.parameters(self.vectors, self.normalizer, batch, targets[0]))
        return drawn

    def loss(self, model: nn.Module, *drawn: torch.Tensor) -> torch.Tensor:
        """The loss of one process's share of a batch, for what [`FunctionObjective.draw`] has drawn."""
        config, given = self.config, iter(drawn)
        targets = tuple(itertools.islice(given, self.targets.num_drawn))
        written, is_network = model(self.targets.latents(*targets)), self.targets.is_network(*targets)
        vectors = self.normalizer.denormalize(written)
        loss = written.new_zeros(())
        if config.function_loss:
            functions, activations = next(given), tuple(itertools.islice(given, self.num_activations))
            own = self.functions(vectors, activations)
            loss = loss + config.function_loss * self.targets.distance(own, functions, *targets)
        if config.task_loss:
            labels, activations = next(given), tuple(itertools.islice(given, self.num_activations))
            own = self.functions(vectors, activations)
            found = nn.functional.cross_entropy(own.flatten(0, 1), labels.flatten(), reduction="none")
            loss = loss + config.task_loss * _mean(found.view(labels.shape), is_network)
        if config.weight_loss:
            found = (written - next(given)).square()
            loss = loss + config.weight_loss * _mean(found, is_network)
        return loss

    def _pool_of(self, step: int) -> FunctionPool:
        period = step // self.config.pool_steps
        if self._pool is None or self._pool[0] != period:
            self._pool = None
            seed = int(np.random.SeedSequence([self.config.seed, period, 1]).generate_state(1)[0])
            options = self.functions, self.vectors, self.probes
            self._pool = (period, FunctionPool(*options, self.config, seed, self.encoder))
        return self._pool[1]


def _mean(values: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
    """Of values `(B, n)`, those of rows that do not count `(B,)` being 0."""
    return values.mean() if counts is None else (counts @ values.mean(1)) / len(values)
