"""The module [`networks`] under the name by which files call it."""

from ..networks import convnet3, convnext_mini, mlp3, resnet_mini, vit_mini

__all__ = ["convnet3", "convnext_mini", "mlp3", "resnet_mini", "vit_mini"]
