"""EPSD on ImageNet: python pipelines/imagenet_epsd.py --help"""

from cluster.exit import leave
from pipelines.cli import main
from pipelines.recipes import imagenet_epsd

if __name__ == "__main__":
    leave(main(imagenet_epsd))
