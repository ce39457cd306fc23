"""Opening MLflow: a SQLite file with its artefacts beside it, or a server; and the addresses of its pages."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.lock import lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
ARTIFACTS = "mlartifacts"
"""Name of the folder beside a SQLite file in which its artefacts are."""

UI = "http://127.0.0.1:5000"
"""Where `make ui` serves a SQLite file."""

LONGEST_PATH = 480
"""Bytes. SQLite opens paths of up to 512, those of its own temporary files included."""

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Set where unset: with MLflow's 7 retries of 120 s a driver would hang for many minutes if the server is gone."""


def database_of(uri: str) -> Path | None:
    """The file of a SQLite store; None for a server. ValueError for a URI of another kind, or a path that MLflow would
    not open as it is written."""
    if uri.startswith(("http://", "https://")):
        return None
    path = uri.removeprefix(SQLITE)
    if path in ("", uri):
        shown = without_password(uri)
        raise ValueError(f"tracking URI {shown!r} is not supported: give sqlite:///FILE or http(s)://HOST:PORT")
    file = Path(os.path.abspath(path))
    if set("%?") & set(path) or len(os.fsencode(file)) > LONGEST_PATH:
        raise ValueError(
            f"MLflow cannot keep its file or artefacts in {path}: it takes no path with % or ?, and at most "
            f"{LONGEST_PATH} bytes. Choose another --storage or --tracking-uri, e.g. a server: http://HOST:PORT"
        )
    return file


def open_store(uri: str) -> MlflowClient:
    """A client of a store; a SQLite file is created if missing. ValueError if it cannot be opened."""
    database = database_of(uri)
    return _client(uri) if database is None else _open_file(database)


def artifact_location(uri: str) -> str | None:
    """Where the artefacts of new experiments go: for a SQLite file beside it; None: a server decides."""
    database = database_of(uri)
    return None if database is None else str(database.parent / ARTIFACTS)


def page(uri: str, experiment: str, run: str | None = None) -> str:
    """The address of a run, or of all runs of an experiment, in MLflow's UI: in the view for training."""
    address = UI if uri.startswith(SQLITE) else re.sub(r"://[^/\s]*@", "://", uri).rstrip("/")
    place = "runs" if run is None else f"runs/{run}"
    return f"{address}/#/experiments/{experiment}/{place}?workflowType=machine_learning"


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turns MLflow's errors into errors that name the URI."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        shown = without_password(uri)
        reason = without_password(str(error)).strip().partition("\n")[0][:500]
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise ValueError(f"MLflow at {shown} refused a value: {reason}") from error
        raise ConnectionError(
            f"MLflow at {shown} cannot be used: {reason}. Is it running, and is --tracking-uri right?"
        ) from error


def without_password(text: str) -> str:
    """`text` with user and password of each URL hidden, as errors end up in logs. A password may contain an @."""
    return re.sub(r"://[^/\s]*@", "://***@", text)


def _client(uri: str) -> MlflowClient:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # at INFO both report each table that they create
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def _open_file(path: Path) -> MlflowClient:
    """A client of the SQLite store `path`, which is created if missing; ValueError if it cannot be opened.

    MLflow creates a database by dozens of migrations. Two drivers at once, or a kill in between, would leave one that
    never opens again. So it is created under a lock and a temporary name.
    """
    try:
        with lock(path.with_name(f"{path.name}.lock")):
            if path.exists():
                _probe(path)
            else:
                fresh = path.with_name(f".tmp-{path.name}")
                fresh.unlink(missing_ok=True)
                fresh.with_name(f"{fresh.name}-journal").unlink(missing_ok=True)
                _probe(fresh)
                _client(f"{SQLITE}{fresh}")
                os.rename(fresh, path)
            client = _client(f"{SQLITE}{path}")
            if (path.parent / "orchard.json").exists():
                _take_artifacts_along(path)
            return client
    except (OSError, sqlite3.Error) as error:
        raise ValueError(
            f"tracking store {path} cannot be opened ({error}): give a SQLite file in a folder that can be written"
        ) from error


def _probe(path: Path) -> None:
    """sqlite3.Error if SQLite cannot open the file: MLflow would try for minutes."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA schema_version")


def _take_artifacts_along(database: Path) -> None:
    """Make the artefacts of a storage those beside its database, also after it was copied or moved.

    MLflow stores absolute paths, which would still lead to the original. Every row whose path lies in a folder of our
    name is changed; a level store costs one query.
    """
    columns = {"experiments": "artifact_location", "runs": "artifact_uri", "logged_models": "artifact_location"}
    root = str(database.parent / ARTIFACTS)
    with closing(sqlite3.connect(database)) as connection, connection:
        elsewhere = "artifact_location LIKE ? AND artifact_location <> ?"
        query = f"SELECT DISTINCT artifact_location FROM experiments WHERE {elsewhere}"
        for (old,) in connection.execute(query, (f"%/{ARTIFACTS}", root)).fetchall():
            for table, column in columns.items():
                start = f"substr({column} || '/', 1, {len(old) + 1}) = ?"
                change = f"UPDATE {table} SET {column} = ? || substr({column}, {len(old) + 1}) WHERE {start}"
                connection.execute(change, (root, f"{old}/"))
