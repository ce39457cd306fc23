"""EPSD on CIFAR-10: python pipelines/cifar10_epsd.py --help"""

import sys

from pipelines.cli import main
from pipelines.recipes import cifar10_epsd

if __name__ == "__main__":
    sys.exit(main(cifar10_epsd))
