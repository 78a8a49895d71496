"""Backbones: ResNet, PyConvResNet, networks of timm, and attention in their blocks."""
