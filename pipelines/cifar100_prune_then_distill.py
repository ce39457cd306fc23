"""python pipelines/cifar100_prune_then_distill.py --help"""

from cluster.exit import exit_process
from pipelines.cli import main
from pipelines.recipes import cifar100_prune_then_distill

if __name__ == "__main__":
    exit_process(main(cifar100_prune_then_distill))
