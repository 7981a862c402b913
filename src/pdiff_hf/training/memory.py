"""How much memory training a denoiser takes, before it is trained."""

from __future__ import annotations

import torch
from diffusers import ModelMixin

from ..machine import default_device, free_memory
from ..wording import setting

# Values of the training data that are there at the same time: the table, its rows as vectors, latents, batches.
COPIES_OF_DATASET = 4
# Weights, gradients, two moments of AdamW and the moving average.
COPIES_OF_WEIGHTS = 5


def unet_training_bytes(unet: ModelMixin, batch_size: int, num_rows: int) -> int:
    """Bytes that training a denoiser, given on the device `meta`, takes at least, beside Python and its libraries.

    Activations that the backward pass needs are counted on a forward pass without values; they are the larger part.
    What the libraries' kernels take on top depends on sizes: on CPUs it was measured to be 0 to 70 %.
    """
    # Views of one tensor are one; kept alive, no other takes its address.
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    shape = (unet.config.in_channels, unet.config.sample_size)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = unet(torch.empty(batch_size, *shape, device="meta"), torch.zeros((), device="meta")).sample
    weights = sum(parameter.nbytes for parameter in unet.parameters())
    for parameter in unet.parameters():
        saved.pop(parameter.untyped_storage()._cdata, None)
    sizes = [storage.nbytes() for storage in saved.values()]
    # The gradient of the widest activation, and the noise, the noisy latents and the prediction of the batch.
    activations = sum(sizes) + max(sizes) + 4 * output.nbytes
    return activations + COPIES_OF_WEIGHTS * weights + COPIES_OF_DATASET * num_rows * 4 * shape[0] * shape[1]


def check_unet_memory(unet: ModelMixin, batch_size: int, num_rows: int) -> None:
    """Compare what training the denoiser takes with the memory that is free.

    Raises:
        ValueError: it does not fit.
    """
    free = free_memory(default_device())
    needed = unet_training_bytes(unet, batch_size, num_rows)
    if needed > free:
        raise ValueError(
            f"a denoiser of {unet.config.in_channels} × {unet.config.sample_size} values needs "
            f"at least {needed / 2**30:.1f} GB with train_batch_size={batch_size}, found {free / 2**30:.1f} GB free; "
            f"lower {setting('diffusion.train_batch_size')}, select fewer tensors, or use an autoencoder."
        )
