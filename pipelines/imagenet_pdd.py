"""PDD on ImageNet: python pipelines/imagenet_pdd.py --help"""

import sys

from pipelines.cli import main
from pipelines.recipes import imagenet_pdd

if __name__ == "__main__":
    sys.exit(main(imagenet_pdd))
