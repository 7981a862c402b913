"""Factories for `BaseModel.imported`: small networks that are generated as a whole, and a head for others.

All take images `(B, C, H, W)`, C the number of channels `in_chans`, and give logits `(B, num_classes)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch
from timm.models import ConvNeXt, ResNet, VisionTransformer
from timm.models.resnet import BasicBlock
from torch import nn


def mlp3(in_features: int = 64, hidden: Sequence[int] = (32, 16), num_classes: int = 10) -> nn.Module:
    """A multi-layer perceptron with ReLU; three linear layers with the default `hidden`.

    Args:
        in_features (`int`, *optional*, defaults to 64): Values of an image, `C * H * W`.
        hidden (`Sequence[int]`, *optional*, defaults to `(32, 16)`): Widths of the hidden layers.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden:
        layers += [nn.Linear(in_features, width), nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, num_classes))


def convnet3(in_chans: int = 1, channels: Sequence[int] = (16, 32, 32), num_classes: int = 10) -> nn.Module:
    """A convolutional network with ReLU; three 3x3 convolutions with the default `channels`, and a linear layer.

    Every convolution but the last is followed by 2x2 max pooling, the last by global average pooling, so images of any
    size from `2 ** (len(channels) - 1)` pixels fit.

    Args:
        channels (`Sequence[int]`, *optional*, defaults to `(16, 32, 32)`): Output channels of the convolutions.
    """
    layers: list[nn.Module] = []
    for index, width in enumerate(channels):
        pool = nn.MaxPool2d(2) if index < len(channels) - 1 else nn.AdaptiveAvgPool2d(1)
        layers += [nn.Conv2d(in_chans, width, 3, padding=1), nn.ReLU(), pool]
        in_chans = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(in_chans, num_classes))


def resnet_mini(in_chans: int = 3, channels: Sequence[int] = (8, 16, 32, 64), num_classes: int = 10) -> nn.Module:
    """A timm `ResNet` with one basic block a stage; it has BatchNorm layers with running statistics.

    The stem is three 3x3 convolutions of stride 2 in all, without the max pooling that is for photographs.

    Args:
        channels (`Sequence[int]`, *optional*, defaults to `(8, 16, 32, 64)`): Channels of the four stages.
    """
    blocks = (1,) * len(channels)
    model = ResNet(
        BasicBlock, blocks, num_classes, in_chans, channels=tuple(channels), stem_type="deep", stem_width=channels[0]
    )
    model.maxpool = nn.Identity()
    return model


def vit_mini(
    in_chans: int = 3,
    img_size: int = 32,
    patch_size: int = 4,
    embed_dim: int = 48,
    depth: int = 3,
    num_heads: int = 3,
    mlp_ratio: float = 2.0,
    num_classes: int = 10,
) -> nn.Module:
    """A timm `VisionTransformer` of small dimensions that averages its tokens.

    Args:
        img_size (`int`, *optional*, defaults to 32): Pixels of an image's side, a multiple of `patch_size`.
        patch_size (`int`, *optional*, defaults to 4): Pixels of a patch's side.
        embed_dim (`int`, *optional*, defaults to 48): Values of a token.
        depth (`int`, *optional*, defaults to 3): Blocks.
        num_heads (`int`, *optional*, defaults to 3): Attention heads, a divisor of `embed_dim`.
        mlp_ratio (`float`, *optional*, defaults to 2.0): Hidden values of a block's perceptron per value of a token.
    """
    return VisionTransformer(
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        global_pool="avg",
        class_token=False,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
    )


def convnext_mini(
    in_chans: int = 3, dims: Sequence[int] = (16, 24, 32, 48), patch_size: int = 2, num_classes: int = 10
) -> nn.Module:
    """A timm `ConvNeXt` with one block a stage and without layer scale, which is for deep networks.

    By default, images have 32 pixels or more.

    Args:
        dims (`Sequence[int]`, *optional*, defaults to `(16, 24, 32, 48)`): Channels of the four stages.
        patch_size (`int`, *optional*, defaults to 2): Pixels that the stem takes together. With 2, timm lets the first
            stage halve as well, which shrinks an image by 32 in all.
    """
    return ConvNeXt(
        in_chans, num_classes, depths=(1, 1, 1, 1), dims=tuple(dims), patch_size=patch_size, ls_init_value=None
    )


class PrincipalComponents(nn.Module):
    """Features `(B, n)` in units of their spread along their first k principal components, `(B, k)`.

    Nothing of it is trained. Until it is fitted, it gives the first k features.

    Args:
        num_features (`int`): n.
        num_components (`int`): k, n at most.
    """

    mean: torch.Tensor
    components: torch.Tensor

    def __init__(self, num_features: int, num_components: int):
        super().__init__()
        if not 1 <= num_components <= num_features:
            raise ValueError(
                f"expected num_components from 1 to {num_features}, the features of the network, found "
                f"{num_components}."
            )
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("components", torch.eye(num_features)[:, :num_components].contiguous())

    @torch.no_grad()
    def fit(self, features: torch.Tensor) -> None:
        """Fit it to features `(N, n)`; `ValueError` where they do not vary in so many directions."""
        rows = features.double()
        mean, num = rows.mean(0), self.components.shape[1]
        variances, directions = torch.linalg.eigh(torch.cov(rows.T))
        variances, directions = variances.flip(0)[:num], directions.flip(1)[:, :num]
        if not (variances[-1] > variances[0] * torch.finfo(features.dtype).eps).item():
            raise ValueError(
                f"expected {len(features)} features that vary in {num} directions, found fewer; lower num_components "
                "or give more examples."
            )
        # The sign of a component is arbitrary: its largest weight is positive.
        signs = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
        self.mean.copy_(mean)
        self.components.copy_(signs * directions / variances.sqrt())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Components `(B, k)` of features `(B, n)`."""
        return (features - self.mean) @ self.components


class TimmWithHead(nn.Module):
    """A network of timm without its classifier, and a head on the features `(B, n)` that it pools.

    Args:
        network (`nn.Module`): Of timm, made with `num_classes=0`.
        head (`nn.Module`): Takes the features.
        image_size (`int`, *optional*): Pixels to which images are enlarged first; as they are by default.
    """

    def __init__(self, network: nn.Module, head: nn.Module, image_size: int | None = None):
        super().__init__()
        self.network, self.head, self.image_size = network, head, image_size

    def get_classifier(self) -> nn.Module:
        """The head, as timm's networks call it."""
        return self.head

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features `(B, n)` of images `(B, C, H, W)`."""
        if self.image_size is not None:
            images = nn.functional.interpolate(images, (self.image_size,) * 2, mode="bicubic", align_corners=False)
        return self.network(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `(B, num_classes)` of images `(B, C, H, W)`."""
        return self.head(self.features(images))


def timm_with_head(
    model: str,
    image_size: int | None = None,
    num_components: int = 64,
    hidden: Sequence[int] = (16,),
    in_chans: int = 3,
    num_classes: int = 2,
    pretrained: bool = False,
) -> nn.Module:
    """A network of timm whose classifier is a small perceptron with SiLU, on principal components of its features.

    `select: head` are the linear layers alone, which is what the networks of a zoo differ in; the components are
    fitted to training examples before any training. RPG's heads (arXiv 2501.11587) are such perceptrons on all
    features.

    Args:
        model (`str`): Of `timm.list_models()`.
        image_size (`int`, *optional*): Pixels to which the network enlarges its images; none by default.
        num_components (`int`, *optional*, defaults to 64): Principal components that the perceptron takes.
        hidden (`Sequence[int]`, *optional*, defaults to `(16,)`): Widths of its hidden layers.
        pretrained (`bool`, *optional*, defaults to `False`): Whether timm downloads the weights that it has.

    Raises:
        ValueError: timm has no such model, or it has fewer features.
    """
    if not timm.is_model(model):
        raise ValueError(f"base model: timm {timm.__version__} has no model {model!r}.")
    network = timm.create_model(model, pretrained=pretrained, in_chans=in_chans, num_classes=0)
    width = num_components
    layers: list[nn.Module] = [PrincipalComponents(network.head_hidden_size, width)]
    for size in hidden:
        layers += [nn.Linear(width, size), nn.SiLU()]
        width = size
    return TimmWithHead(network, nn.Sequential(*layers, nn.Linear(width, num_classes)), image_size)
