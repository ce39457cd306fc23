"""python pipelines/cifar10_epsd.py --help"""

from cluster.exit import exit_process
from pipelines.cli import main
from pipelines.recipes import cifar10_epsd

if __name__ == "__main__":
    exit_process(main(cifar10_epsd))
