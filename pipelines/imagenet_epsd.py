"""EPSD on ImageNet: python pipelines/imagenet_epsd.py --help"""

import sys

from pipelines.cli import main
from pipelines.recipes import imagenet_epsd

if __name__ == "__main__":
    sys.exit(main(imagenet_epsd))
