"""Pruning and distillation of neural networks: criteria, objectives, masks and the methods made of them."""

from compression.batch import Batch
