"""EPSD on scikit-learn's digits: python pipelines/digits_epsd.py --help"""

from cluster.exit import leave
from pipelines.cli import main
from pipelines.recipes import digits_epsd

if __name__ == "__main__":
    leave(main(digits_epsd))
