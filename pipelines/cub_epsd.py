"""EPSD on CUB-200-2011: python pipelines/cub_epsd.py --help"""

import sys

from pipelines.cli import main
from pipelines.recipes import cub_epsd

if __name__ == "__main__":
    sys.exit(main(cub_epsd))
