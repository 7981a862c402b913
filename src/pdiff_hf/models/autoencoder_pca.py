"""The closed-form linear autoencoder, for whole networks of millions of parameters."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from .autoencoder_base import ParameterAutoencoderMixin, ParameterAutoencoderOutput
from .pca import principal_components


class AutoencoderPCA(ParameterAutoencoderMixin, ModelMixin, ConfigMixin):
    r"""Principal component analysis of normalised parameter vectors, with the interface of [`AutoencoderPDiff`].

    `encode` gives the scores along the components divided by their standard deviation, `decode` the linear way back.
    Nothing is trained by gradients: [`~AutoencoderPCA.fit_statistics`] is exact and costs two passes over the data.

    Parameters:
        num_parameters (`int`, *optional*): Length D of a vector; exactly one of `num_parameters` and `layout`.
        layout (`dict`, *optional*): `ParameterLayout.to_dict()`, makes the model self-contained.
        normalization (`str`, *optional*, defaults to `"per_tensor"`): `"per_tensor"` or `"per_parameter"` z-scores.
        latent_channels (`int`), latent_length (`int`): C and L; C·L components are kept.
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
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ):
        super().__init__()
        self._init_common()
        components = latent_channels * latent_length
        self.register_buffer("mean", torch.zeros(self.vector_length))
        self.register_buffer("basis", torch.zeros(components, self.vector_length))
        self.register_buffer("deviations", torch.ones(components))

    @torch.no_grad()
    def fit_statistics(self, vectors: torch.Tensor) -> None:
        """Fit normaliser, mean and basis to raw training vectors `(K, D)`; the basis is kept in the model's dtype.

        Raises:
            ValueError: K is too small for the number of components.
        """
        self.normalizer.fit(vectors)
        self.mean, self.basis, self.deviations = principal_components(
            vectors, self.normalizer, len(self.basis), dtype=self.basis.dtype
        )

    def _encode(self, normalized: torch.Tensor) -> torch.Tensor:
        return (normalized - self.mean.to(normalized.dtype)) @ self.basis.T / self.deviations.to(normalized.dtype)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        scores = latents * self.deviations.to(latents.dtype)
        return scores @ self.basis + self.mean.to(latents.dtype)

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
