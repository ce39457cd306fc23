"""MLflow's UI of a storage, opened at its runs: `python -m cluster.ui STORAGE`.

By itself the UI opens in a view for language models, which shows no runs.
"""

import argparse
import os
import sys
from pathlib import Path

from cluster.mlflow_store import SQLITE
from cluster.tracking import Tracker


def main() -> None:
    """Print the page of each suite, then become the server."""
    parser = argparse.ArgumentParser(prog="python -m cluster.ui", description=__doc__)
    parser.add_argument("storage", type=Path, help="folder given to --storage")
    database = parser.parse_args().storage.absolute() / "mlflow.db"
    if not database.exists():
        parser.error(f"{database} does not exist: give the --storage of runs that were tracked there")
    tracker = Tracker(f"{SQLITE}{database}")
    for suite in sorted(tracker.suites()):
        if tracker.search(suite):
            print(f"{suite}: {tracker.page(suite)}")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", f"{SQLITE}{database}"])


if __name__ == "__main__":
    main()
