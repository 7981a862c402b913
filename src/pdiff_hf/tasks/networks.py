"""Small networks without normalisation, generated as a whole in the paper; factories for `BaseModel.imported`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def mlp3(in_features: int = 64, hidden: Sequence[int] = (32, 16), num_classes: int = 10) -> nn.Module:
    """A multi-layer perceptron with ReLU; three linear layers with the default `hidden`.

    Args:
        in_features (`int`, *optional*, defaults to 64): Values of an image, `C * H * W`.
        hidden (`Sequence[int]`, *optional*, defaults to `(32, 16)`): Widths of the hidden layers.
        num_classes (`int`, *optional*, defaults to 10): Number of classes.

    Returns:
        `nn.Module`: Takes images `(B, C, H, W)` and gives logits `(B, num_classes)`.
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
        in_chans (`int`, *optional*, defaults to 1): Channels of an image.
        channels (`Sequence[int]`, *optional*, defaults to `(16, 32, 32)`): Output channels of the convolutions.
        num_classes (`int`, *optional*, defaults to 10): Number of classes.

    Returns:
        `nn.Module`: Takes images `(B, C, H, W)` and gives logits `(B, num_classes)`.
    """
    layers: list[nn.Module] = []
    for index, width in enumerate(channels):
        pool = nn.MaxPool2d(2) if index < len(channels) - 1 else nn.AdaptiveAvgPool2d(1)
        layers += [nn.Conv2d(in_chans, width, 3, padding=1), nn.ReLU(), pool]
        in_chans = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(in_chans, num_classes))
