"""Prune-then-Distill on CIFAR-100: python pipelines/cifar100_prune_then_distill.py --help"""

from cluster.exit import leave
from pipelines.cli import main
from pipelines.recipes import cifar100_prune_then_distill

if __name__ == "__main__":
    leave(main(cifar100_prune_then_distill))
