"""The closed-form linear autoencoder, for whole networks of millions of parameters."""

from collections.abc import Iterator

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from .autoencoder_base import ParameterAutoencoderMixin, ParameterAutoencoderOutput
from .normalizer import BLOCK_VALUES
from .pca import PrincipalComponents


class AutoencoderPCA(ParameterAutoencoderMixin, ModelMixin, ConfigMixin):
    r"""Principal component analysis of normalised parameter vectors, with the interface of [`AutoencoderPDiff`].

    `encode` gives the scores along the components divided by their standard deviation, `decode` the linear way back.
    Nothing is trained by gradients: [`~AutoencoderPCA.fit_statistics`] is exact and costs three passes over the data.

    Parameters:
        num_parameters (`int`, *optional*): Length D of a vector; exactly one of `num_parameters` and `layout`.
        layout (`dict`, *optional*): `ParameterLayout.to_dict()`, makes the model self-contained.
        normalization (`str`, *optional*, defaults to `"per_tensor"`): `"per_tensor"` or `"per_parameter"` z-scores.
        latent_channels (`int`), latent_length (`int`): C and L; C·L components are kept.
        basis_dtype (`str`, *optional*, defaults to `"float32"`): In which the C·L × D basis is stored, the only thing
            that is large: `float32`, `bfloat16` or `float16`. Sums are float32 in any case.
        scaling_factor (`float`), shift_factor (`float`): Set from the encoded dataset.
    """

    @register_to_config
    def __init__(
        self,
        num_parameters: int | None = None,
        layout: dict | None = None,
        normalization: str = "per_tensor",
        latent_channels: int = 32,
        latent_length: int = 4,
        basis_dtype: str = "float32",
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ):
        super().__init__()
        self._init_common()
        self.components = PrincipalComponents(self.vector_length, latent_channels * latent_length, basis_dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the computation; the basis may be stored in a narrower one."""
        return self.components.mean.dtype

    @torch.no_grad()
    def fit_statistics(self, vectors: torch.Tensor) -> None:
        """Fit normaliser, mean and basis to raw training vectors `(K, D)`, a tensor or [`StoredVectors`].

        Raises:
            ValueError: K is too small for the number of components.
        """
        self.normalizer.fit(vectors)
        self.components.fit(vectors, self.normalizer)

    @torch.no_grad()
    def encode_rows(self, vectors: torch.Tensor) -> torch.Tensor:
        """Encode many raw vectors `(K, D)` to float32 latents `(K, C, L)`, in one pass over blocks of columns."""
        scores = torch.zeros(len(vectors), len(self.components.deviations), device=self.device)
        for columns in self._blocks(len(vectors)):
            block = vectors[:, columns].to(self.device)
            scores += self.components.encode(self.normalizer.normalize(block, columns.start), columns.start)
        return scores.reshape(-1, *self.latent_shape)

    @torch.no_grad()
    def reconstruct_blocks(self, vectors: torch.Tensor) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        """Encode and decode many raw vectors, block by block of columns; see [`ParameterAutoencoderMixin`]."""
        scores = self.encode_rows(vectors).flatten(1)
        for columns in self._blocks(len(vectors)):
            normalized = self.components.decode(scores, columns.start, columns.stop)
            yield slice(0, len(vectors)), columns, self.normalizer.denormalize(normalized, columns.start)

    def _blocks(self, num_rows: int) -> Iterator[slice]:
        width = max(1, BLOCK_VALUES // max(1, num_rows))
        starts = range(0, self.vector_length, width)
        return (slice(start, min(start + width, self.vector_length)) for start in starts)

    def _encode(self, normalized: torch.Tensor) -> torch.Tensor:
        return self.components.encode(normalized)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.components.decode(latents)

    def forward(
        self, sample: torch.Tensor, return_dict: bool = True
    ) -> ParameterAutoencoderOutput | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode and decode raw vectors `(B, D)`."""
        target = self.normalizer.normalize(sample)
        latents = self._encode(target.to(self.dtype))
        normalized = self._decode(latents)
        loss = torch.nn.functional.mse_loss(normalized.float(), target)
        output = (self.normalizer.denormalize(normalized), latents.reshape(-1, *self.latent_shape), loss)
        return ParameterAutoencoderOutput(*output) if return_dict else output
