"""Architectures by name."""

from compression.models.registry import MODELS, build

__all__ = ["MODELS", "build"]
