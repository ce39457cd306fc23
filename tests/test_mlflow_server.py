"""The MLflow server of cluster/manifests/mlflow-compose.yaml with PostgreSQL, without containers."""

from __future__ import annotations

import configparser
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cli import main
from pipelines.recipes import digits_epsd
from pipelines.run_folder import RunFolder
from tests.job_package import ROOT

MANIFESTS = ROOT / "cluster/manifests"
TIMEOUT = 120.0
"""Seconds to wait for a server."""

ADMIN, DATABASE = "admin-secret-3f1c", "database-secret-9b7e"

pytestmark = pytest.mark.skipif(
    any(shutil.which(name) is None for name in ("initdb", "pg_ctl", "postgres")), reason="needs PostgreSQL's binaries"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Server:
    """A running MLflow server; `database` are the arguments with which psycopg2 connects to its PostgreSQL."""

    uri: str
    artifacts: Path
    log: Path
    database: dict[str, Any]

    def status(self, password: str | None = ADMIN, host: str | None = None) -> int:
        """HTTP status of a read-only request."""
        request = urllib.request.Request(f"{self.uri}/api/2.0/mlflow/experiments/search?max_results=1")
        if password is not None:
            request.add_header("Authorization", "Basic " + b64encode(f"orchard:{password}".encode()).decode())
        if host is not None:
            request.add_header("Host", host)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def rows(self, query: str) -> list[tuple[object, ...]]:
        import psycopg2

        connection = psycopg2.connect(**self.database)
        try:
            with connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def postgres() -> Iterator[int]:
    """The port of a PostgreSQL with the database and the user of the compose file."""
    # PostgreSQL refuses to run as root, and other users cannot read pytest's folders.
    folder = Path(tempfile.mkdtemp(prefix="orchard-postgres-"))
    (folder / "password").write_text(DATABASE)
    as_user: list[str] = []
    if os.geteuid() == 0:
        as_user = ["runuser", "-u", "nobody", "--"]
        for path in (folder, folder / "password"):
            shutil.chown(path, "nobody")
    compose = yaml.safe_load((MANIFESTS / "mlflow-compose.yaml").read_text())["services"]["postgres"]["environment"]
    user = compose["POSTGRES_USER"]
    port = free_port()

    def run(*command: str) -> None:
        subprocess.run([*as_user, *command], cwd=folder, check=True, timeout=TIMEOUT, stdout=subprocess.DEVNULL)

    data = str(folder / "data")
    passwords = ["--auth-local=trust", compose["POSTGRES_INITDB_ARGS"], f"--pwfile={folder}/password"]
    run("initdb", "--pgdata", data, "--username", user, "--encoding=UTF8", "--no-locale", *passwords)
    options = f"-h 127.0.0.1 -p {port} -k {folder} -F"
    run("pg_ctl", "--pgdata", data, "--wait", "--log", str(folder / "log"), "--options", options, "start")
    try:
        make = ["--command", f"CREATE DATABASE {compose['POSTGRES_DB']}"]
        run("psql", "--host", str(folder), "--port", str(port), "--username", user, "--dbname", "postgres", *make)
        yield port
    finally:
        run("pg_ctl", "--pgdata", data, "--mode=immediate", "stop")
        shutil.rmtree(folder)


def as_in_compose(port: int, postgres: int, artifacts: Path) -> list[str]:
    """The command of the compose file, with the addresses of this machine."""
    service = yaml.safe_load((MANIFESTS / "mlflow-compose.yaml").read_text())["services"]["mlflow"]
    changes = {
        "${MLFLOW_ALLOWED_HOSTS:-localhost:5000,127.0.0.1:5000}": f"localhost:{port},127.0.0.1:{port}",
        "@postgres:5432": f"@127.0.0.1:{postgres}",
        "s3://mlflow": str(artifacts),
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=5000": f"--port={port}",
    }
    words = list(service["command"])
    for old, new in changes.items():
        assert sum(old in word for word in words) == 1, f"{old} is no longer in the command of the compose file"
        words = [word.replace(old, new) for word in words]
    return [sys.executable, "-m", *words, "--workers=1"]


@pytest.fixture(scope="module")
def server(postgres: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    auth = configparser.ConfigParser()
    auth.read(MANIFESTS / "mlflow-auth.ini")
    auth["mlflow"]["database_uri"] = auth["mlflow"]["database_uri"].replace("@postgres:5432", f"@127.0.0.1:{postgres}")
    with (folder / "auth.ini").open("w") as file:
        auth.write(file)
    secrets = {
        "PGPASSWORD": DATABASE,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "sign-2a6d",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    database = {"host": "127.0.0.1", "port": postgres, "user": "mlflow", "dbname": "mlflow", "password": DATABASE}
    found = Server(f"http://127.0.0.1:{port}", folder / "artifacts", folder / "log", database)
    with found.log.open("wb") as log:
        command = as_in_compose(port, postgres, found.artifacts)
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **secrets}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_until_healthy(found, process)
            yield found
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_healthy(server: Server, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        assert process.poll() is None, server.log.read_text()
        try:
            with urllib.request.urlopen(f"{server.uri}/health", timeout=2):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    raise AssertionError(f"the server did not start:\n{server.log.read_text()}")


def test_only_the_right_password_and_host_name_are_accepted(server: Server):
    assert server.status() == 200
    assert server.status(password=None) == 401
    assert server.status(password="wrong") == 401
    assert server.status(host="elsewhere.example") == 403, "another host name for this address (DNS rebinding)"


def test_a_run_is_tracked_completely(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "orchard")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN)
    options = ["--smoke", "--storage", str(tmp_path), "--tracking-uri", server.uri, "--suite", "smoke"]
    assert main(digits_epsd, options) == 0, capfd.readouterr().err

    [path] = (tmp_path / "runs").iterdir()
    recorded = {(r["key"], r["step"]): r["value"] for r in RunFolder(tmp_path, path.name).read_history()}
    assert len(recorded) > 20
    for group in ("test", "val"):
        last = {key: step for key, step in sorted(recorded, key=lambda point: point[1]) if key.startswith(f"{group}/")}
        recorded |= {(key.replace("/", "_"), step): recorded[key, step] for key, step in last.items()}
    tracked = server.rows("SELECT key, step, value FROM metrics")
    assert {(key, step): value for key, step, value in tracked} == pytest.approx(recorded, abs=0)
    assert len(tracked) == len(recorded), "each value once"
    assert server.rows("SELECT status FROM runs") == [("FINISHED",)]
    uploaded = {file.name: file.read_bytes() for file in server.artifacts.rglob("*") if file.is_file()}
    assert uploaded == {name: (path / name).read_bytes() for name in ("arch.json", "model.safetensors")}
    assert not (tmp_path / "mlflow.db").exists()


def test_a_wrong_password_is_reported_before_training(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "orchard")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-secret-77aa")
    assert main(digits_epsd, ["--smoke", "--storage", str(tmp_path), "--tracking-uri", server.uri]) == 2
    said = capfd.readouterr()
    assert server.uri in said.err
    assert "wrong-secret-77aa" not in said.err + said.out
    assert not (tmp_path / "runs").exists()


def test_the_server_log_contains_no_secret(server: Server):
    log = server.log.read_text()
    assert "Created admin user" in log
    assert not [secret for secret in (ADMIN, DATABASE, "sign-2a6d", "wrong-secret-77aa") if secret in log]
