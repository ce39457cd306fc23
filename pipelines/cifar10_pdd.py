"""PDD on CIFAR-10: python pipelines/cifar10_pdd.py --help"""

import sys

from pipelines.cli import main
from pipelines.recipes import cifar10_pdd

if __name__ == "__main__":
    sys.exit(main(cifar10_pdd))
