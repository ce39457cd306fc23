"""PDD on ImageNet: python pipelines/imagenet_pdd.py --help"""

from cluster.exit import leave
from pipelines.cli import main
from pipelines.recipes import imagenet_pdd

if __name__ == "__main__":
    leave(main(imagenet_pdd))
