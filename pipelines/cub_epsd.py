"""EPSD on CUB-200-2011: python pipelines/cub_epsd.py --help"""

from cluster.exit import exit_process
from pipelines.cli import main
from pipelines.recipes import cub_epsd

if __name__ == "__main__":
    exit_process(main(cub_epsd))
