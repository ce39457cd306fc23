"""Verify the finished runs of a storage: each file must have the sha256 in the record that makes it valid.

    python -m cluster.verify STORAGE                 # one line for each file that is not as it was written
    python -m cluster.verify STORAGE --repair        # damaged networks come back from MLflow, where they fit
    python -m cluster.verify STORAGE --repair http://HOST:PORT

The exit status is 0 if every file is whole, 1 if not, 2 for a wrong command.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.atomic import write_atomically
from cluster.checkpoints import file_name
from cluster.records import damaged, read_json, sha256
from cluster.scratch import scratch

NOT_NEEDED = "a finished run does not need it: delete {}"


@dataclass
class Run:
    """What was found in the folder of a finished run.

    wrong: one text for each file that is missing or not as it was written. files: name -> sha256 of the network's
    files; empty: the run was recorded without. lost: those of them that are wrong -> their text.
    """

    folder: Path
    wrong: list[str] = field(default_factory=list)
    files: Mapping[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)


def verify(storage: Path) -> Iterator[Run]:
    """Check every finished run of a storage. Nothing is changed."""
    for result in sorted((storage / "runs").glob("*/result.json")):
        yield verify_run(result)


def verify_run(result: Path) -> Run:
    """Check one finished run, by its result.json. Nothing is changed."""
    run = Run(result.parent)
    record = _read(run, result, "delete it and start its command again: it is made again from the checkpoints")
    run.files = {file_name(name): digest for name, digest in record.get("files", {}).items()}
    for name, digest in run.files.items():
        for text in damaged(run.folder, {name: digest}):
            run.lost[name] = text
            run.wrong.append(text)
    if "metrics" not in record and not run.wrong:
        run.wrong.append(f"{result} is not the result of a finished run: delete it and start its command again")
    if (description := run.folder / "run.json").exists():
        _read(run, description, NOT_NEEDED.format(description))
    for stage in sorted((run.folder / "stages").glob("*")):
        for path in [stage / "stage.json", *sorted(stage.glob("checkpoints/step-*/state.json"))]:
            if path.exists():
                remedy = NOT_NEEDED.format(path.parent)
                of_stage = _read(run, path, remedy)
                run.wrong += [f"{text}; {remedy}" for text in damaged(path.parent, of_stage.get("files", {}))]
    return run


def repair(run: Run, uri: str) -> list[str]:
    """Replace the network's wrong files by copies from MLflow that have the recorded sha256; returns their names.

    ValueError, ConnectionError: MLflow cannot be used.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from cluster.mlflow_store import SQLITE
    from cluster.tracking import IDENTITY, Tracker

    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).is_file():
        raise ValueError(f"there is no MLflow at {uri}: give its address after --repair")
    Tracker(uri)  # its errors say what is wrong with the address
    client, repaired = MlflowClient(uri), []
    suites = [suite.experiment_id for suite in client.search_experiments()]
    for found in client.search_runs(suites, f"tags.`{IDENTITY}` = '{run.folder.name}'"):
        for name in [name for name in run.lost if name not in repaired]:
            with scratch("verify-") as folder, contextlib.suppress(MlflowException, OSError):
                data = Path(client.download_artifacts(found.info.run_id, name, str(folder))).read_bytes()
                if sha256(data) == run.files[name]:
                    write_atomically(run.folder / name, data)
                    repaired.append(name)
    return repaired


def _read(run: Run, path: Path, remedy: str) -> dict[str, Any]:
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        run.wrong.append(f"{error}; {remedy}")
        return {}
    return record if isinstance(record, dict) else {}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m cluster.verify", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("storage", type=Path, help="the folder that was --storage")
    parser.add_argument(
        "--repair",
        nargs="?",
        const="",
        metavar="TRACKING_URI",
        help="get damaged networks back from MLflow (default: mlflow.db in the storage)",
    )
    options = parser.parse_args(argv)
    storage: Path = options.storage.absolute()
    if not (storage / "orchard.json").is_file():
        print(f"error: {storage} is no storage: give the folder that was --storage", file=sys.stderr)
        return 2
    try:
        runs = [_report(run, storage, options.repair) for run in verify(storage)]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    unrecorded = sum(not run.files and not run.wrong for run in runs)
    bad = sum(bool(run.wrong) for run in runs)
    hint = f", {unrecorded} recorded without checksums: start their commands again to add them" if unrecorded else ""
    print(f"{len(runs)} finished runs: {len(runs) - bad} whole, {bad} damaged{hint}")
    return 1 if bad else 0


def _report(run: Run, storage: Path, tracking_uri: str | None) -> Run:
    """Print what is wrong with a run, after the repair that was asked for. tracking_uri: None: none was."""
    if run.lost and tracking_uri is not None:
        for name in repair(run, tracking_uri or f"sqlite:///{storage}/mlflow.db"):
            print(f"repaired: {run.folder / name}")
            run.wrong.remove(run.lost.pop(name))
    for text in run.wrong:
        print(f"bad: {text}")
    return run


if __name__ == "__main__":
    sys.exit(main())
