"""Architectures by name."""

from compression.models.registry import MODELS, build, check_name

__all__ = ["MODELS", "build", "check_name"]
