"""The module [`networks`] under the name by which files call it."""

from ..networks import convnet3, convnext_mini, mlp3, resnet_mini, timm_with_head, vit_mini

__all__ = ["convnet3", "convnext_mini", "mlp3", "resnet_mini", "timm_with_head", "vit_mini"]
