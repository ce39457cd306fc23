"""Prune-then-Distill on ImageNet: python pipelines/imagenet_prune_then_distill.py --help"""

from cluster.exit import leave
from pipelines.cli import main
from pipelines.recipes import imagenet_prune_then_distill

if __name__ == "__main__":
    leave(main(imagenet_prune_then_distill))
