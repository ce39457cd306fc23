"""python pipelines/digits_epsd.py --help"""

from cluster.exit import exit_process
from pipelines.cli import main
from pipelines.recipes import digits_epsd

if __name__ == "__main__":
    exit_process(main(digits_epsd))
