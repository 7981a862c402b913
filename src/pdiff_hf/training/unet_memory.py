"""What training the denoiser needs, known before there is any of it: for diffusion without an autoencoder."""

from __future__ import annotations

import psutil
import torch
from diffusers import UNet1DModel

# Values of the training data that are there at the same time: the table, its rows as vectors, latents, batches.
COPIES_OF_DATASET = 4
# Weights, gradients, two moments of AdamW and the moving average.
COPIES_OF_WEIGHTS = 5


def unet_training_bytes(unet: UNet1DModel, batch_size: int, num_rows: int) -> int:
    """Bytes that training a denoiser takes at least, beside Python and its libraries.

    Activations that the backward pass needs are counted on a forward pass without values; they are the larger part.
    What the libraries' kernels take on top depends on sizes: on CPUs it was measured to be 0 to 70 %.

    Args:
        unet ([`UNet1DModel`]): On the device `meta`.
        batch_size (`int`): Rows of a batch.
        num_rows (`int`): Rows of the dataset.
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


def check_unet_memory(unet: UNet1DModel, batch_size: int, num_rows: int) -> None:
    """Compare what training the denoiser takes with the memory that is free.

    Raises:
        ValueError: it does not fit.
    """
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None and device.type == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        free = psutil.virtual_memory().available
    needed = unet_training_bytes(unet, batch_size, num_rows)
    if needed > free:
        raise ValueError(
            f"autoencoder.kind=none: a denoiser of {unet.config.in_channels} × {unet.config.sample_size} values needs "
            f"at least {needed / 2**30:.1f} GB with diffusion.train_batch_size={batch_size}, found {free / 2**30:.1f} "
            "GB free; lower it, select fewer tensors, or use an autoencoder."
        )
