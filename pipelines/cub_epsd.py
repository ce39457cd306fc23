"""EPSD on CUB-200-2011: python pipelines/cub_epsd.py --help"""

from cluster.exit import leave
from pipelines.cli import main
from pipelines.recipes import cub_epsd

if __name__ == "__main__":
    leave(main(cub_epsd))
