"""The autoencoder of networks that compares what they compute, not their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from .autoencoder_base import ParameterAutoencoderMixin, ParameterEncoderOutput
from .function_decoder import FunctionDecoder
from .function_encoder import FunctionEncoder
from .functions import NetworkFunctions, analogies
from .normalizer import BLOCK_VALUES

# Probe inputs that are computed at once when networks are encoded.
PROBES_AT_ONCE = 100
# Of networks and analogies of them, so many are what components are fitted to.
NUM_ANALOGIES = 1024


class AutoencoderFunctional(ParameterAutoencoderMixin, ModelMixin, ConfigMixin):
    r"""Autoencoder of networks as functions, with the interface of [`AutoencoderPDiff`].

    `encode` computes every network on stored probe inputs and gives the scores of its outputs, less their mean over
    the classes, along the principal components of those of the training networks: whatever the order of hidden units
    is, it plays no part. Of networks of several tasks these are probabilities, and the components those of analogies,
    too. `decode` writes parameters, as an offset from a reference network, that compute such a
    function; another network than was encoded, and the same function as far as the decoder has learned it, which is
    what it is trained for (`pdiff_hf.training.functional`).

    To encode, one that was loaded has to be given the base network, see [`~AutoencoderFunctional.connect`]; to decode,
    nothing.

    Parameters:
        num_parameters, layout, normalization, scaling_factor, shift_factor: See [`AutoencoderPDiff`].
        latent_channels (`int`), latent_length (`int`): C and L; C·L components are kept.
        hidden (`tuple[int, ...]`), rank (`int`), max_decoder_mb (`int`): Of the decoder, see [`FunctionDecoder`].
        probe_shape (`list[int]`, *optional*), num_outputs (`int`, *optional*), token_ids (`bool`), probabilities
            (`bool`): Of the probe inputs and of the outputs on them, known once it is fitted.
    """

    needs_network: ClassVar[bool] = True

    @register_to_config
    def __init__(
        self,
        num_parameters: int | None = None,
        layout: dict | None = None,
        normalization: str = "per_parameter",
        latent_channels: int = 64,
        latent_length: int = 1,
        hidden: Sequence[int] = (512, 512),
        rank: int = 24,
        max_decoder_mb: int = 256,
        probe_shape: list[int] | None = None,
        num_outputs: int | None = None,
        token_ids: bool = False,
        probabilities: bool = False,
        scaling_factor: float | list[float] = 1.0,
        shift_factor: float = 0.0,
    ):
        super().__init__()
        self._init_common()
        size = latent_channels * latent_length
        tensors = [(self.vector_length,)] if layout is None else [tensor["shape"] for tensor in layout["tensors"]]
        self.decoder = FunctionDecoder(tensors, size, hidden, rank, max_decoder_mb)
        self.encoder = None
        if probe_shape is not None:
            self.encoder = FunctionEncoder(size, tuple(probe_shape), num_outputs, token_ids, probabilities)
        self._functions: NetworkFunctions | None = None

    @property
    def latent_deviations(self) -> torch.Tensor | None:
        """By how much functions vary along every latent value `(C·L,)`."""
        return None if self.encoder is None else self.encoder.deviations

    def connect(self, model: nn.Module) -> None:
        """Give it the base network that it computes when it encodes.

        Raises:
            ValueError: the network has other tensors than the layout, or does not take the probe inputs.
        """
        probes = self._fitted().probes
        self._functions = NetworkFunctions(model, self.layout, probes[:PROBES_AT_ONCE], self.device)
        if self._functions.num_outputs != self.config.num_outputs:
            raise ValueError(
                f"expected a base network with {self.config.num_outputs} outputs, as when it was fitted, found "
                f"{self._functions.num_outputs}; give the network that it was trained with."
            )

    @torch.no_grad()
    def fit(
        self,
        vectors: torch.Tensor,
        probes: torch.Tensor,
        model: nn.Module,
        reference: int = 0,
        probabilities: bool = False,
    ) -> torch.Tensor:
        """Fit normaliser and encoder to raw training vectors `(K, D)`, one of which becomes the reference.

        Args:
            vectors (`torch.Tensor` of shape `(K, D)`): A tensor or [`StoredVectors`].
            probes (`torch.Tensor` of shape `(P, …)`): Inputs of the base network, on which networks are compared.
            model (`nn.Module`): The base network.
            reference (`int`, *optional*, defaults to 0): The row that offsets are from. What is written has its
                faults, wherever the functions that are asked for do not say otherwise: take a good one.
            probabilities (`bool`, *optional*, defaults to `False`): Compare probabilities in place of logits, along
                the principal components of networks and of as many [`analogies`] of them, which reach farther.

        Returns:
            `torch.Tensor`: the functions, as logits, `(K, P, classes)` of the training networks on the probes.

        Raises:
            ValueError: the base network does not take the probes, there are too few networks for the latents, or they
                compute one function.
        """
        self.normalizer.fit(vectors)
        functions = NetworkFunctions(model, self.layout, probes[:PROBES_AT_ONCE], self.device)
        found = torch.cat([functions.of(vectors[rows], probes) for rows in self._blocks(len(vectors))])
        is_tokens = not probes.is_floating_point()
        kind = {"num_outputs": functions.num_outputs, "token_ids": is_tokens, "probabilities": probabilities}
        self.register_to_config(probe_shape=list(probes.shape), **kind)
        size = self.latent_shape[0] * self.latent_shape[1]
        encoder = FunctionEncoder(size, tuple(probes.shape), **kind).to(self.device)
        encoder.probes.copy_(probes)
        values = encoder.values(found)
        if probabilities:
            rows = torch.randint(len(values), (NUM_ANALOGIES, 3), generator=torch.Generator().manual_seed(0))
            rows[::2] = rows[::2, :1]
            values = analogies(values, rows.to(self.device))
        encoder.fit(values)
        self.encoder, self._functions = encoder, functions
        row = vectors[reference : reference + 1].to(self.device)
        self.decoder.reference.copy_(self.normalizer.normalize(row)[0])
        return found

    def fit_statistics(self, vectors: torch.Tensor) -> None:
        """Not enough for it: see [`~AutoencoderFunctional.fit`]."""
        raise ValueError("a functional autoencoder is fitted with probe inputs and the base network: call fit().")

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalised parameters `(B, D)`, float32, of latents `(B, C·L)`: what is trained."""
        return self.decoder(latents)

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> ParameterEncoderOutput | tuple[torch.Tensor]:
        """Encode raw vectors `(B, D)` to latents `(B, C, L)`, by what these networks compute.

        Raises:
            ValueError: it was not given the base network, or vectors of another length.
        """
        latents = self._fitted().scores(self.values(x)).reshape(-1, *self.latent_shape)
        return ParameterEncoderOutput(latents=latents) if return_dict else (latents,)

    @torch.no_grad()
    def values(self, x: torch.Tensor) -> torch.Tensor:
        """What is compared of raw vectors `(B, D)`: logits or probabilities `(B, P, classes)` on the probes.

        Raises:
            ValueError: it was not given the base network, or vectors of another length.
        """
        self._check_vectors(x)
        encoder = self._fitted()
        if self._functions is None:
            raise ValueError(
                "expected a functional autoencoder that was given its base network, which it needs to encode, found "
                "none; call autoencoder.connect(base_model.build()) first."
            )
        return encoder.values(self._functions.of(x, encoder.probes))

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.decoder(latents)

    def _fitted(self) -> FunctionEncoder:
        if self.encoder is None:
            raise ValueError("expected a functional autoencoder that was fitted, found a new one; call fit() first.")
        return self.encoder

    def _blocks(self, num: int) -> list[slice]:
        size = max(1, BLOCK_VALUES // self.vector_length)
        return [slice(start, min(start + size, num)) for start in range(0, num, size)]
