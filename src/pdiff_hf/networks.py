"""Small networks that are generated as a whole in the paper; factories for `BaseModel.imported`.

All take images `(B, C, H, W)`, C the number of channels `in_chans`, and give logits `(B, num_classes)`.
"""

from __future__ import annotations

from collections.abc import Sequence

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
