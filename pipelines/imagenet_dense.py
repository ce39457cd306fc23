"""Dense networks on ImageNet: python pipelines/imagenet_dense.py --help"""

from cluster.exit import leave
from pipelines.cli import main
from pipelines.recipes import imagenet_dense

if __name__ == "__main__":
    leave(main(imagenet_dense))
