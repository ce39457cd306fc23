"""EPSD on scikit-learn's digits: python pipelines/digits_epsd.py --help"""

import sys

from pipelines.cli import main
from pipelines.recipes import digits_epsd

if __name__ == "__main__":
    sys.exit(main(digits_epsd))
