"""Evaluation of many networks that differ in the generated tensors only."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ..data.vectors import Vectors
from ..forward import FullForward, SplitForward, input_dtype, split_if_exportable
from ..identity import NetworkIdentity
from ..layout import ParameterLayout
from ..machine import free_memory, precision_of, wait_for
from ..results.metric import Metric
from .outputs import EvaluatorOutput
from .scores import NetworkEvaluator

# Bins of the expected calibration error; torchmetrics' default.
NUM_BINS = 15
# Memory of the results of one chunk of networks, and of the largest activation of networks computed at once; on an
# accelerator, where fewer launches pay, a share of what is free at the beginning, when that is more.
CHUNK_BYTES = 2**28
MAX_SHARE_OF_ACCELERATOR = 1 / 16
# The fastest of so many runs counts; another program's load makes single ones slow.
TIMING_REPEATS = 5
# Below this many networks in a chunk the self-timing costs more than it gains.
MIN_NETWORKS_TO_TIME = 40


def confidence_bins(confidences: torch.Tensor) -> torch.Tensor:
    """The bin of the expected calibration error of every confidence: `NUM_BINS` equal ones, and one for exactly 1."""
    edges = torch.linspace(0, 1, NUM_BINS + 1, device=confidences.device)
    return torch.bucketize(confidences, edges, right=True).sub_(1).clamp_(0, NUM_BINS)


class ParameterEvaluator(NetworkEvaluator):
    """Evaluates networks that share a base model and differ in the tensors of a layout, computing only what changed.

    The part of the forward pass that does not depend on the layout's tensors runs once per image batch and its result
    is kept; every network costs the rest. Networks are computed one after another or several at once with
    `torch.func.vmap`, whichever a short timing on the first chunk finds faster. When the model cannot be exported, a
    warning is given and every network costs a full forward.

    Args:
        model (`nn.Module`): The base model with all of its weights; it is copied and not changed.
        layout ([`ParameterLayout`]): Which tensors the vectors hold.
        images (`torch.Tensor` of shape `(N, C, H, W)`): Preprocessed images, or token ids `(N, L)` of texts; moved to
            `device` as a whole.
        labels (`torch.Tensor` of shape `(N,)`, `int64`): Their classes.
        populations (`Mapping[str, torch.Tensor]`, *optional*): Where networks were trained on different labels, the
            labels `(N,)` of every such population by its name, -1 where an example has none: a network is then judged
            by those that it fits best.
        rows (`torch.Tensor` of shape `(K,)`, `int64`, *optional*): Of the networks of a dataset, the population of
            each, its place in `populations`. Where that is known, nothing is guessed: [`predict`] has to be told.
        batch_size (`int`, *optional*, defaults to 500): Images per forward pass.
        device (`torch.device` or `str`, *optional*): Where to compute; where the model is by default.
        max_cache_bytes (`int`, *optional*, defaults to 2 GiB): Memory for kept activations; those of further batches
            are recomputed once per chunk of networks.
        networks_at_once (`int`, *optional*): Networks per `vmap` call, 1 for one after another; timed by default. The
            two ways agree to float32 rounding.
        accelerator (`accelerate.Accelerator`, *optional*): Its processes share the networks of [`predict`]; all of
            them call it with the same networks and get the same results. Only this process by default.
        identity ([`NetworkIdentity`], *optional*): Which network model and layout are, for comparison with others.

    Raises:
        ValueError: the layout does not fit the model, its tensors do not influence the logits, images and labels do
            not belong together, or the device cannot compute in the model's half precision.
    """

    @precision_of("evaluation")
    def __init__(
        self,
        model: nn.Module,
        layout: ParameterLayout,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        populations: Mapping[str, torch.Tensor] | None = None,
        rows: torch.Tensor | None = None,
        batch_size: int = 500,
        device: torch.device | str | None = None,
        max_cache_bytes: int = 2 * 2**30,
        networks_at_once: int | None = None,
        accelerator: Accelerator | None = None,
        identity: NetworkIdentity | None = None,
    ):
        expected = (4, "images (N, C, H, W)") if images.is_floating_point() else (2, "token ids (N, L)")
        if images.ndim != expected[0] or len(images) == 0 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"expected {expected[1]} with N >= 1 and labels (N,), found {tuple(images.shape)} and "
                f"{tuple(labels.shape)}"
            )
        if any(own.shape != labels.shape for own in (populations or {}).values()):
            found = {name: tuple(own.shape) for name, own in populations.items()}
            raise ValueError(f"expected labels {tuple(labels.shape)} of every population, found {found}")
        layout.check(model)
        self.layout, self.metric, self.rows, self._identity = layout, Metric(), rows, identity
        self.populations = tuple(populations) if populations and len(populations) > 1 else ()
        self.device = torch.device(device) if device is not None else next(model.parameters()).device
        self.batch_size = min(batch_size, len(images))
        self._chunk_bytes = CHUNK_BYTES
        if self.device.type != "cpu":
            self._chunk_bytes = max(CHUNK_BYTES, int(MAX_SHARE_OF_ACCELERATOR * free_memory(self.device)))
        targets = torch.stack(list(populations.values())) if populations else labels[None]
        self._set_images(images.to(self.device), targets.to(self.device, torch.int64), max_cache_bytes)
        self.labels = labels.to(self.device, torch.int64)

        self._forward = split_if_exportable(FullForward(model, self.device), self._batches[0], layout.names, "network")
        self.num_nodes = self._forward.num_nodes if self.is_partial else 0
        self.num_dependent_nodes = self._forward.num_dependent_nodes if self.is_partial else 0
        self._networks_at_once = networks_at_once
        self._accelerator = accelerator
        own = layout.unflatten(layout.flatten(model)[None].to(self.device))
        try:
            with torch.no_grad():
                self.num_classes = self._tail(self._activations(0), own, 1, at_once=1).shape[-1]
        except RuntimeError as error:
            if (dtype := input_dtype(model)).itemsize > 2:
                raise
            # Of half precision, the CPU lacks some operations.
            raise ValueError(
                f"expected a network that computes in {dtype} on {self.device}, found: {str(error).splitlines()[0]}; "
                "evaluate it on another device, or record it in float32 (model.float())."
            ) from error
        lowest, highest = int(self.targets.min()), int(self.targets.max())
        if lowest < (-1 if populations else 0) or highest >= self.num_classes:
            raise ValueError(
                f"expected labels in [0, {self.num_classes}), the classes of the model, found [{lowest}, {highest}]"
            )

    def _set_images(self, images: torch.Tensor, targets: torch.Tensor, max_cache_bytes: int) -> None:
        self.targets = targets
        self._batches = list(images.split(self.batch_size))
        self._sizes = [len(batch) for batch in self._batches]
        # The exported graph knows one batch size only.
        missing = self._sizes[0] - self._sizes[-1]
        self._batches[-1] = torch.cat([self._batches[-1], self._batches[0][:missing]])
        self._cache: dict[int, tuple[torch.Tensor, ...]] = {}
        self._cache_bytes_left = self._max_cache_bytes = max_cache_bytes

    def reordered(self, order: torch.Tensor) -> ParameterEvaluator:
        """An evaluator of the same images in another order `(N,)`, without exporting the model again."""
        other = copy.copy(self)
        images = torch.cat(self._batches)[: len(self.labels)]
        order = order.to(self.device)
        other._set_images(images[order], self.targets[:, order], self._max_cache_bytes)
        other.labels = self.labels[order]
        return other

    @property
    def num_examples(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def is_partial(self) -> bool:
        """Whether only the part that depends on the layout's tensors is computed for every network."""
        return isinstance(self._forward, SplitForward)

    @torch.no_grad()
    def logits(self, vectors: Vectors) -> Iterator[tuple[int, torch.Tensor]]:
        """Logits of networks, streamed over chunks of networks.

        Args:
            vectors (`torch.Tensor` or [`StoredVectors`] of shape `(B, D)`): Raw parameter values.

        Yields:
            `tuple[int, torch.Tensor]`: index of the chunk's first network, and its float32 logits `(b, N, classes)`.
        """
        self.check_vectors(vectors)
        num_bytes = 4 * len(self.labels) * self.num_classes
        for start, chunk in self._chunks(vectors, num_bytes, 0, len(vectors)):
            with precision_of("evaluation"):
                logits = torch.cat([logits for _, logits in self._chunk_logits(chunk)], 1)
            yield start, logits

    @torch.no_grad()
    @precision_of("evaluation")
    def predict(
        self,
        vectors: Vectors,
        num_images: int | None = None,
        keep: torch.Tensor | None = None,
        population: torch.Tensor | None = None,
    ) -> EvaluatorOutput:
        """Accuracy, NLL, ECE and predictions of networks in one pass.

        Args:
            vectors (`torch.Tensor` or [`StoredVectors`] of shape `(B, D)`): Raw parameter values.
            num_images (`int`, *optional*): Evaluate on the first so many images; whole batches of them are computed.
            keep (`torch.Tensor` of shape `(n,)`, `int64`, *optional*): Images, in ascending order, of which the logits
                are kept; none by default.
            population (`torch.Tensor` of shape `(B,)`, `int64`, *optional*): By which labels each network is judged,
                the place in `populations`; by default by those that it fits best.

        Raises:
            ValueError: the vectors do not fit the layout, there are fewer images, or populations are known and not
                given.
        """
        self.check_vectors(vectors)
        if population is None and self.rows is not None:
            raise ValueError(
                "expected the task of every network, by whose labels alone it is judged, found none; give their "
                "places in populations (population=…)."
            )
        if num_images is not None and not 1 <= num_images <= len(self.labels):
            raise ValueError(f"expected num_images from 1 to {len(self.labels)}, found {num_images}")
        keep = torch.empty(0, dtype=torch.int64) if keep is None else keep
        targets = self.targets[:, :num_images]
        # Of examples that a population does not have, nothing counts, so that means over all are means over its own.
        weights = (targets >= 0).float()
        weights /= weights.mean(1, keepdim=True).clamp(min=1 / targets.shape[1])
        outputs = []
        # Per network: predictions and losses, logits that are kept, and a batch of logits and of two temporaries.
        tried = len(targets) if population is None else 1
        num_bytes = (8 + 4 * tried) * targets.shape[1] + 4 * (len(keep) + 3 * self._sizes[0]) * self.num_classes
        for start, chunk in self._chunks(vectors, num_bytes, *self.own_rows(vectors)):
            if population is None:
                candidates, counts = targets[:, None].expand(-1, len(chunk), -1), weights[:, None]
            else:
                known = population[start : start + len(chunk)].to(self.device)
                candidates, counts = targets[None, known], weights[None, known]
            gaps = torch.zeros(tried, len(chunk), NUM_BINS + 1, device=self.device)
            predictions, losses, kept = [], [], []
            for images, logits in self._chunk_logits(chunk, num_images):
                labels, counted = candidates[..., images], counts[..., images]
                log_probabilities = logits.log_softmax(-1)
                gathered = log_probabilities.expand(len(labels), -1, -1, -1).gather(-1, labels.clamp(min=0)[..., None])
                losses.append(torch.where(counted > 0, -gathered[..., 0] * counted, 0.0))
                confidences, predicted = log_probabilities.max(-1)
                confidences = confidences.exp()
                predicted = predicted.masked_fill(confidences.isnan(), -1)
                bins = confidence_bins(confidences).expand(len(labels), -1, -1)
                missing = torch.where(counted > 0, ((predicted == labels).float() - confidences) * counted, 0.0)
                gaps.scatter_add_(2, bins, missing)
                predictions.append(predicted)
                kept.append(logits[:, keep[(keep >= images.start) & (keep < images.stop)] - images.start])
            predictions, losses = torch.cat(predictions, 1), torch.cat(losses, 2)
            # The population of a network is the one that it fits best.
            right = (predictions == candidates) & (candidates >= 0)
            best = (right * counts).mean(2).argmax(0)
            own = (best, torch.arange(len(chunk), device=self.device))
            ece = gaps[own].abs().sum(1) / targets.shape[1]
            best = best if population is None else known
            output = (right[own], losses[own], ece, predictions, best, torch.cat(kept, 1))
            outputs.append(tuple(tensor.cpu() for tensor in output))
        if self._accelerator is not None:
            outputs = gather_object(outputs)
        return EvaluatorOutput(*map(torch.cat, zip(*outputs, strict=True)), weights=weights.cpu())

    def accuracy(self, vectors: Vectors) -> torch.Tensor:
        """Fractions of right predictions `(B,)` of networks `(B, D)`, their scores."""
        return self.score(vectors)

    def nll(self, vectors: Vectors, **options: Any) -> torch.Tensor:
        """Mean negative log-likelihoods `(B,)` of networks `(B, D)`, in nats; `options` are those of [`predict`]."""
        return self.predict(vectors, **options).nll

    def ece(self, vectors: Vectors) -> torch.Tensor:
        """Expected calibration errors `(B,)` of networks `(B, D)`, 15 bins."""
        return self.predict(vectors).ece

    def predictions(self, vectors: Vectors) -> torch.Tensor:
        """Predicted classes `(B, N)` of networks `(B, D)`, in which labels play no part."""
        return self.predict(vectors, population=torch.zeros(len(vectors), dtype=torch.int64)).predictions

    def _chunks(
        self, vectors: Vectors, bytes_per_network: int, first: int, stop: int
    ) -> Iterator[tuple[int, torch.Tensor]]:
        size = max(1, self._chunk_bytes // (bytes_per_network + 4 * self.layout.num_parameters))
        for start in range(first, stop, size):
            yield start, vectors[start : min(start + size, stop)]

    def _activations(self, index: int) -> tuple[torch.Tensor, ...]:
        """Output of the prefix for image batch `index`, kept as long as there is room."""
        if index in self._cache:
            return self._cache[index]
        batch = self._batches[index]
        activations = self._forward.prefix(batch)
        num_bytes = sum(tensor.nbytes for tensor in activations if tensor is not batch)
        if num_bytes <= self._cache_bytes_left:
            self._cache_bytes_left -= num_bytes
            self._cache[index] = activations
        return activations

    def _chunk_logits(
        self, chunk: torch.Tensor, num_images: int | None = None
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Image slices and the logits `(b, n, classes)` of all networks of a chunk on them."""
        tensors = self.layout.unflatten(chunk.to(self.device))
        start, stop = 0, num_images or len(self.labels)
        for index, size in enumerate(self._sizes):
            if start >= stop:
                break
            size = min(size, stop - start)
            activations = self._activations(index)
            if self._networks_at_once is None and len(chunk) >= MIN_NETWORKS_TO_TIME:
                self._networks_at_once = self._time_tail(activations, tensors, len(chunk))
            logits = self._tail(activations, tensors, len(chunk), self._networks_at_once or 1)
            yield slice(start, start + size), logits[:, :size].float()
            start += size

    def _tail(
        self, activations: tuple[torch.Tensor, ...], tensors: dict[str, torch.Tensor], num: int, at_once: int
    ) -> torch.Tensor:
        """Logits `(num, n, classes)` of the first `num` networks, `at_once` networks at a time."""
        if at_once == 1:
            rows = ({name: tensor[row] for name, tensor in tensors.items()} for row in range(num))
            return torch.stack([self._forward.tail(activations, row) for row in rows])
        tail = torch.func.vmap(self._forward.tail, in_dims=(None, 0))
        groups = (slice(first, min(first + at_once, num)) for first in range(0, num, at_once))
        return torch.cat([tail(activations, {name: tensor[g] for name, tensor in tensors.items()}) for g in groups])

    def _time_tail(
        self, activations: tuple[torch.Tensor, ...], tensors: dict[str, torch.Tensor], num_networks: int
    ) -> int:
        """Number of networks at once that takes the least time per network; groups grow fourfold while that pays."""
        if not self.is_partial:
            return 1
        best, best_seconds = 1, float("inf")
        at_once = 1
        limit = min(num_networks, max(1, self._chunk_bytes // self._forward.max_activation_bytes))
        while at_once <= limit:
            try:
                seconds = []
                for _ in range(TIMING_REPEATS):
                    begin = time.perf_counter()
                    self._tail(activations, tensors, at_once, at_once)
                    wait_for(self.device)
                    seconds.append((time.perf_counter() - begin) / at_once)
            except RuntimeError:  # an operation without batching rule, or not enough memory
                break
            if min(seconds) > 0.9 * best_seconds:
                break
            best, best_seconds = at_once, min(seconds)
            at_once *= 4
        return best
