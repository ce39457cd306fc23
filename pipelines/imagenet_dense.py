"""Dense networks on ImageNet: python pipelines/imagenet_dense.py --help"""

import sys

from pipelines.cli import main
from pipelines.recipes import imagenet_dense

if __name__ == "__main__":
    sys.exit(main(imagenet_dense))
