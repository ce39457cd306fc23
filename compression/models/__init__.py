"""Architectures by name."""

from compression.models.registry import MODELS, build, check_name
