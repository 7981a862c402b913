"""What networks compute: the outputs of many that differ in the tensors of a layout, also for gradients."""

from __future__ import annotations

import torch
from torch import nn

from ..forward import FullForward, split_if_exportable
from ..layout import ParameterLayout

# Memory of the largest activation of the networks that are computed at once, without gradients.
CHUNK_BYTES = 2**27


class NetworkFunctions:
    """The functions of networks that share a base model: logits less their mean over the classes, all softmax sees.

    What does not depend on the layout's tensors, the prefix, is computed once for every input; networks are computed
    with `torch.func.vmap`, or one after another where an operation has no batching rule.

    Args:
        model (`nn.Module`): The base model with all of its weights; it is copied.
        layout ([`ParameterLayout`]): Which tensors the vectors hold.
        inputs (`torch.Tensor` of shape `(n, …)`): A batch as all will be: images `(n, C, H, W)` or token ids `(n, L)`.
        device (`torch.device` or `str`): Where to compute.

    Raises:
        ValueError: the logits do not depend on the layout's tensors, or the model does not take the inputs.
    """

    def __init__(
        self, model: nn.Module, layout: ParameterLayout, inputs: torch.Tensor, device: torch.device | str = "cpu"
    ):
        layout.check(model)
        self.layout, self.device, self.batch_size = layout, torch.device(device), len(inputs)
        full = FullForward(model, self.device)
        inputs = inputs.to(self.device)
        try:
            with torch.no_grad():
                self.num_outputs = full(inputs[:1]).shape[-1]
        except (RuntimeError, IndexError, TypeError) as error:
            raise ValueError(
                f"expected inputs that the base model takes, found {tuple(inputs.shape[1:])} of {inputs.dtype} "
                f"({str(error).splitlines()[0]}); take those of its task."
            ) from error
        self._forward = split_if_exportable(full, inputs, layout.names, "network", differentiable=True)
        self._activation_bytes = getattr(self._forward, "max_activation_bytes", CHUNK_BYTES)
        # Convolutions of many networks at once are grouped ones, which CPUs compute slowly.
        self._has_batching = self.device.type != "cpu" or not getattr(self._forward, "has_convolutions", True)

    def __deepcopy__(self, memo: dict) -> NetworkFunctions:
        # Nothing of it is trained, and exported graphs cannot be copied.
        return self

    @torch.no_grad()
    def prefix(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Activations of inputs `(batch_size, …)` that [`NetworkFunctions.__call__`] takes in their place."""
        return self._forward.prefix(inputs.to(self.device))

    def __call__(self, vectors: torch.Tensor, activations: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Functions `(B, batch_size, classes)`, float32, of raw vectors `(B, D)`, which gradients reach."""
        tensors = self.layout.unflatten(vectors)
        if self._has_batching:
            try:
                return _centred(torch.func.vmap(self._forward.tail, in_dims=(None, 0))(activations, tensors))
            except RuntimeError as error:
                # Not enough memory is no reason for another way.
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                self._has_batching = False
        rows = ({name: tensor[row] for name, tensor in tensors.items()} for row in range(len(vectors)))
        return _centred(torch.stack([self._forward.tail(activations, row) for row in rows]))

    @torch.no_grad()
    def of(self, vectors: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Functions `(B, N, classes)` of raw vectors `(B, D)` on any number of inputs `(N, …)`, in bounded memory."""
        batches = list(inputs.split(self.batch_size))
        missing = self.batch_size - len(batches[-1])
        # The graph knows one batch size only.
        batches[-1] = torch.cat([batches[-1], batches[0][:1].expand(missing, *inputs.shape[1:])])
        found = torch.empty(len(vectors), len(batches) * self.batch_size, self.num_outputs, device=self.device)
        rows = vectors.split(max(1, CHUNK_BYTES // self._activation_bytes))
        for index, batch in enumerate(batches):
            activations, start = self.prefix(batch), 0
            for part in rows:
                columns = slice(index * self.batch_size, (index + 1) * self.batch_size)
                found[start : start + len(part), columns] = self(part.to(self.device), activations)
                start += len(part)
        return found[:, : len(inputs)]


def _centred(logits: torch.Tensor) -> torch.Tensor:
    logits = logits.float()
    return logits - logits.mean(-1, keepdim=True)


def analogies(probabilities: torch.Tensor, rows: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """Functions that no network has, made of three networks': p₁ + p₂ - p₃, where that is negative 0, over its sum.

    Of networks that say whether an example is in a set, they say it of the first set with what the second has and the
    third has not, and without what the third alone has: sets of all sizes, of networks of small ones. They are
    analogies, as a model's parameters have them in "task arithmetic" (Ilharco et al. 2023, arXiv 2212.04089), of
    functions. Of three times the same network they are that network's.

    Args:
        probabilities (`torch.Tensor` of shape `(…, K, …, classes)`): Of K networks.
        rows (`torch.Tensor` of shape `(B, 3)`): Which networks.
        dim (`int`, *optional*, defaults to 0): Where the K networks are.
    """
    first, second, third = (probabilities.index_select(dim, index) for index in rows.unbind(1))
    found = (first + (second - third)).clamp_min(0)
    return found / found.sum(-1, keepdim=True)
