"""PDD on ImageNet: python pipelines/imagenet_pdd.py --help"""

from pipelines.cli import leave, main
from pipelines.recipes import imagenet_pdd

if __name__ == "__main__":
    leave(main(imagenet_pdd))
