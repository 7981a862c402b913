"""Cost of every autoencoder for a parameter dataset, estimated before one is trained."""

from __future__ import annotations

import time

import torch
from torch import nn

from ...layout import ParameterLayout
from ...machine import free_memory, wait_for
from ...models.auto import AUTOENCODERS
from ...models.autoencoder_base import ParameterAutoencoderMixin
from ...models.config import AutoencoderConfig, OptimizationConfig

# Training steps are timed when they need no more than this part of the free memory, for so long.
MAX_MEMORY_SHARE = 0.5
TIMING_SECONDS = 3.0
TIMING_STEPS = 6
TIMING_BATCH = 4
# The loaded table, its rows as vectors and those of them that are trained on; on a GPU these alone.
CPU_COPIES_OF_DATASET = 3


def autoencoder_costs(
    vectors: torch.Tensor, layout: ParameterLayout, device: torch.device, pca_seconds: float
) -> dict[str, dict]:
    """Memory and time that training each autoencoder on raw vectors `(K, D)` takes by default, in float32.

    Sizes are those of a model built without memory; activations are the outputs of its layers for one batch. Steps are
    timed with a model of zeros, for at most a few seconds; `pca_seconds` is what the normaliser and the Gram matrix of
    all rows took.

    Returns:
        `dict[str, dict]`: for every variant of every kind (`pca`, `fast`, `paper`): `num_parameters` (trained, or
        fitted in closed form), `bytes` with `weights`, `gradients`, `optimizer`, `activations`, `dataset` and
        `total`, `fits` into the `free_bytes`, and `seconds` of the whole training, `None` where its steps cannot be
        timed.
    """
    # The training reads the vectors again, in another process.
    free = free_memory(device) + (vectors.nbytes if device.type == "cpu" else 0)
    costs = {}
    for name, config in inspected_autoencoders().items():
        with torch.device("meta"):
            model = config.build(layout.to_dict())
        optimization = config.optimization
        trained = sum(parameter.numel() for parameter in model.parameters())
        # The normaliser and the statistics of the latents do not count as fitted.
        buffers = {key: buffer for key, buffer in model.named_buffers() if not key.startswith("normalizer.")}
        fitted = sum(buffer.numel() for key, buffer in buffers.items() if key != "latent_mean")
        sizes = {
            "weights": sum(tensor.nbytes for tensor in model.state_dict().values()),
            "gradients": 4 * trained,
            # Two moments.
            "optimizer": 8 * trained,
            "activations": 0 if optimization is None else activation_bytes(model, optimization.train_batch_size),
            "dataset": vectors.nbytes * (CPU_COPIES_OF_DATASET if device.type == "cpu" else 1),
        }
        total = sum(sizes.values())
        # Another pass over the rows projects them onto the components.
        latents = model.latent_shape[0] * model.latent_shape[1]
        seconds = pca_seconds * (1 + min(1, latents / len(vectors))) if config.has_components else 0.0
        if optimization is not None and total <= MAX_MEMORY_SHARE * free:
            seconds += optimization.steps * seconds_per_step(model.to_empty(device=device), optimization, vectors)
        elif optimization is not None:
            seconds = None
        costs[name] = {
            "num_parameters": trained or fitted,
            "bytes": {**sizes, "total": total},
            "free_bytes": free,
            "fits": total <= free,
            "seconds": seconds,
        }
    return costs


def inspected_autoencoders() -> dict[str, AutoencoderConfig]:
    """The variants of all kinds, those that need no steps first."""
    variants = {name: config for kind in AUTOENCODERS.values() for name, config in kind.variants().items()}
    return dict(sorted(variants.items(), key=lambda item: item[1].optimization is not None))


def activation_bytes(model: ParameterAutoencoderMixin, batch_size: int) -> int:
    """Bytes of all layers' outputs for one batch, for a model on the meta device."""
    sizes: list[int] = []
    # Flattening makes no copy.
    layers = [m for m in model.modules() if not list(m.children()) and not isinstance(m, nn.Flatten | nn.Unflatten)]
    hooks = [layer.register_forward_hook(lambda _, inputs, output: sizes.append(output.nbytes)) for layer in layers]
    model.run_trained_layers(batch_size)
    for hook in hooks:
        hook.remove()
    return sum(sizes)


def seconds_per_step(model: ParameterAutoencoderMixin, config: OptimizationConfig, vectors: torch.Tensor) -> float:
    """Duration of one training step of a model whose memory is not initialised: the fastest of a few.

    When a step would be too slow to be timed, one of a small batch is, as if time grew in proportion.
    """
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    generator = torch.Generator(model.device)
    model.train()

    def fastest(batch_size: int) -> float:
        sample = vectors[torch.arange(batch_size) % len(vectors)].to(model.device)
        durations: list[float] = []
        while len(durations) < TIMING_STEPS and sum(durations) < TIMING_SECONDS / 2:
            begin = time.perf_counter()
            shapes = sample.shape, (batch_size, *model.latent_shape)
            noise = [torch.randn(*shape, generator=generator, device=model.device) for shape in shapes]
            model(sample, *noise, loss_only=True).backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            wait_for(model.device)
            durations.append(time.perf_counter() - begin)
        return min(durations)

    estimate = fastest(TIMING_BATCH) * config.train_batch_size / TIMING_BATCH
    return estimate if estimate > TIMING_SECONDS / 2 else fastest(config.train_batch_size)
