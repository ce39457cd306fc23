"""The statements of docs/security.md: token required, ports on loopback, no secrets written, paths in the storage."""

from __future__ import annotations

import ast
import contextlib
import http.server
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.checkpoints import CheckpointStore, save_tensors, write_json
from cluster.tracking import Tracker
from pipelines.cli import main
from pipelines.recipes import RECIPES
from pipelines.run_folder import RunFolder
from pipelines.teachers import closure
from tests.job_package import ROOT, checkout, package

RAY = str(Path(sys.executable).with_name("ray"))
PRODUCT = ("compression", "cluster", "pipelines", "benchmarks")

TOKEN = secrets.token_hex(32)
PLANTED = {"token": TOKEN} | {name: secrets.token_hex(16) for name in ("aws", "mlflow", "uri", "dotenv")}
"""Location -> a secret that must not be found anywhere else. Random, because the search includes this file."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment_of(home: Path, **more: str) -> dict[str, str]:
    """An environment with this home folder and without variables of Ray and MLflow."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    return {**kept, "HOME": str(home), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", **more}


def make_token(home: Path) -> None:
    (home / ".ray").mkdir(parents=True)
    (home / ".ray/auth_token").write_text(TOKEN)
    (home / ".ray/auth_token").chmod(0o600)


def run(command: list[str], environment: Mapping[str, str], timeout: float = 120) -> tuple[int, str]:
    """Exit status and all output."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    return done.returncode, done.stdout + done.stderr


# Access to a Ray cluster


@dataclass(frozen=True)
class Head:
    """A Ray head on this machine that requires a token. The token is in `home`."""

    home: Path
    port: int
    dashboard: int
    client: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def job(self, *words: str, home: Path | None = None, **environment: str) -> tuple[int, str]:
        """`ray job ...` as the owner of the head, or as the user of `home`. Returns exit status and output."""
        [verb, *rest] = words
        command = [RAY, "job", verb, "--address", self.address, *rest]
        return run(command, environment_of(home or self.home, RAY_AUTH_MODE="token", **environment))


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """Ray's folder: a short path, because paths of Unix sockets are limited to 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="orchard-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, ray_folder: Path) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    make_token(folder / "home")
    found = Head(folder / "home", free_port(), free_port(), free_port())
    # The options of ray-cluster-aws.yaml.
    command = [RAY, "start", "--head", "--block", f"--port={found.port}", "--dashboard-host=127.0.0.1"]
    command += [
        f"--dashboard-port={found.dashboard}",
        # Its default is taken if another test has started a Ray of its own: then no agent takes jobs.
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={found.client}",
        "--num-cpus=1",
        "--num-gpus=0",
    ]
    command += ["--disable-usage-stats", f"--temp-dir={ray_folder / 'head'}"]
    log = (folder / "log").open("wb")
    environment = environment_of(found.home, RAY_AUTH_MODE="token")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while get(f"{found.address}/api/version", TOKEN) != 200:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.5)
        yield found
    finally:
        end_session(process)
        log.close()


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Stop `ray start --block` and its child processes, but no other Ray processes of this machine."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            session = int(entry.read_text().rpartition(")")[2].split()[3])
            if session == process.pid:
                os.kill(int(entry.parent.name), signal.SIGKILL)
        except (OSError, ProcessLookupError):
            continue
    process.wait()


def get(url: str, token: str | None) -> int | None:
    """HTTP status; None without an answer."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return None


@pytest.mark.ray
def test_a_cluster_refuses_jobs_without_the_token(head: Head, tmp_path: Path):
    assert get(f"{head.address}/api/jobs/", TOKEN) == 200
    assert get(f"{head.address}/api/jobs/", None) == 401
    assert get(f"{head.address}/api/jobs/", "00" * 32) in (401, 403)

    marker = tmp_path / "ran"
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    status, said = head.job("submit", "--", "touch", str(marker), home=stranger)
    assert status != 0
    assert "uthentication" in said
    status, said = head.job("submit", "--", "touch", str(marker), home=stranger, RAY_AUTH_TOKEN="00" * 32)
    assert status != 0
    assert "uthentication" in said
    assert not marker.exists()


@pytest.mark.ray
def test_a_job_with_the_token_runs_and_returns_its_status(head: Head, tmp_path: Path):
    marker, end = tmp_path / "ran", time.monotonic() + 60
    status, said = head.job("submit", "--", "touch", str(marker))
    while "No available agent" in said and time.monotonic() < end:  # the node's agent starts after the dashboard
        time.sleep(1)
        status, said = head.job("submit", "--", "touch", str(marker))
    assert status == 0, said
    assert marker.exists()
    status, said = head.job("submit", "--", "false")
    assert status == 1, said
    assert TOKEN not in said


@pytest.mark.ray
def test_a_driver_without_the_token_cannot_connect(head: Head, tmp_path: Path):
    code = "import ray, sys; ray.init(sys.argv[1], logging_level='ERROR'); print('connected', ray.cluster_resources())"
    command = [sys.executable, "-c", code, f"{own_address()}:{head.port}"]
    status, said = run(command, environment_of(tmp_path, RAY_AUTH_MODE="disabled"))
    assert status != 0
    assert "connected" not in said
    assert "uthentic" in said
    status, said = run(command, environment_of(head.home, RAY_AUTH_MODE="token"))
    assert status == 0, said
    assert "connected" in said


@pytest.mark.ray
def test_the_ray_client_port_requires_the_token(head: Head):
    import grpc
    from ray.core.generated import ray_client_pb2 as messages
    from ray.core.generated.ray_client_pb2_grpc import RayletDriverStub

    def ask(token: str | None) -> str:
        metadata = [("client_id", "stranger"), *([("authorization", f"Bearer {token}")] if token else [])]
        with grpc.insecure_channel(f"{own_address()}:{head.client}") as channel:
            question = messages.ClusterInfoRequest(type=messages.ClusterInfoType.PING)  # pyright: ignore
            try:
                RayletDriverStub(channel).ClusterInfo(question, metadata=metadata, timeout=60, wait_for_ready=True)
            except grpc.RpcError as error:
                return error.code().name  # pyright: ignore[reportAttributeAccessIssue]
        return "OK"

    assert ask(None) == "UNAUTHENTICATED"
    assert ask("00" * 32) == "UNAUTHENTICATED"
    assert ask(TOKEN) == "OK"


@pytest.mark.ray
def test_the_dashboard_listens_on_loopback_only(head: Head):
    address = own_address()
    if address.startswith("127."):
        pytest.skip("this machine has loopback only")
    assert get(f"http://{address}:{head.dashboard}/api/version", TOKEN) is None


def own_address() -> str:
    """The network address of this machine, as Ray determines it."""
    from ray.util import get_node_ip_address

    return get_node_ip_address()


# Ports

OPEN = {
    "cluster/manifests/mlflow-compose.yaml": "- --host=0.0.0.0",
}
"""File -> its one line that listens on all interfaces: inside a container, published on loopback only."""


def test_nothing_listens_on_all_interfaces():
    everywhere = re.compile(
        r"(?<![\d.])0\.0\.0\.0(?![\d.])|dashboard[-_]host[=:, ]+['\"]?(\*|::)|LISTEN_ALL|INADDR_ANY"
    )
    found = {}
    for folder in (*PRODUCT, ".ci"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".md", ".pyc", ".lock") or not path.is_file():
                continue
            lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if everywhere.search(line)]
            if lines:
                found[str(path.relative_to(ROOT))] = "\n".join(lines)
    assert found == OPEN


# Secrets


class FakeMlflow(http.server.BaseHTTPRequestHandler):
    """A server that is not MLflow. Its error page repeats the request."""

    def do_GET(self) -> None:
        body = f"no such page: http://{self.headers.get('Authorization')}@{self.headers['Host']}{self.path}".encode()
        self.send_response(404)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def planted(tmp_path: Path, ray_folder: Path) -> dict[str, str]:
    """An environment full of secrets."""
    make_token(tmp_path / "home")
    return environment_of(
        tmp_path / "home",
        AWS_ACCESS_KEY_ID="AKIAPLANTED",
        AWS_SECRET_ACCESS_KEY=PLANTED["aws"],
        MLFLOW_TRACKING_USERNAME="orchard",
        MLFLOW_TRACKING_PASSWORD=PLANTED["mlflow"],
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        RAY_TMPDIR=str(ray_folder / "run"),
    )


def secrets_in(*folders: Path) -> dict[str, list[str]]:
    """File -> the planted secrets found in it."""
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        content = path.read_bytes()
        if inside := [name for name, secret in PLANTED.items() if secret.encode() in content]:
            found[str(path)] = inside
    return found


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[int]:
    """The port of an MLflow server without a password; its files are in tmp_path/served."""
    folder, port = tmp_path / "served", free_port()
    folder.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--port", str(port), "--workers", "1"]
    with (folder / "log").open("wb") as log:
        environment = environment_of(tmp_path, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            end = time.monotonic() + 120
            while get(f"http://127.0.0.1:{port}/health", None) != 200:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.5)
            yield port
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.ray
def test_a_run_writes_no_secret(planted: dict[str, str], mlflow: int, tmp_path: Path):
    storage = tmp_path / "storage"
    uri = f"http://user:{PLANTED['uri']}@127.0.0.1:{mlflow}"
    command = [sys.executable, "pipelines/digits_epsd.py", "--smoke", "--storage", str(storage), "--tracking-uri", uri]
    status, said = run([*command, "--launcher", "ray", "--workers", "1"], planted, timeout=300)
    assert status == 0, said
    (storage / "printed").write_text(said)
    logs = Path(planted["RAY_TMPDIR"])
    assert list(logs.rglob("*.log")), "Ray's logs are searched too"
    assert any(path.name == "model.safetensors" for path in (tmp_path / "served/artifacts").rglob("*")), (
        "the run was tracked"
    )
    assert secrets_in(storage, tmp_path / "served", logs) == {}
    assert list(secrets_in(tmp_path / "home")) == [str(tmp_path / "home/.ray/auth_token")], (
        "the search finds a secret that exists"
    )


def test_errors_contain_no_password(planted: dict[str, str], tmp_path: Path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeMlflow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://user:{PLANTED['uri']}@127.0.0.1:{server.server_port}"
    command = [
        sys.executable,
        "pipelines/digits_epsd.py",
        "--storage",
        str(tmp_path / "storage"),
        "--tracking-uri",
        uri,
    ]
    try:
        status, said = run(command, planted)
    finally:
        server.shutdown()
        server.server_close()
    assert status == 2, said
    assert f"***@127.0.0.1:{server.server_port}" in said, "the message names the server"
    assert [name for name, value in PLANTED.items() if value in said] == []
    assert secrets_in(tmp_path / "storage") == {}


@pytest.mark.parametrize(
    "uri", ["http://user:se@cret@127.0.0.1:1", "ftp://user:secret@host/path", "ftp://:@secret@host"]
)
def test_tracker_errors_hide_the_password(uri: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises((ValueError, ConnectionError)) as caught:
        Tracker(uri)
    assert "***@" in str(caught.value)
    assert "cret" not in str(caught.value)


def test_a_job_package_contains_no_secret(tmp_path: Path):
    tree = checkout(tmp_path / "tree")
    secret = PLANTED["dotenv"]
    names = (
        ".env",
        "pipelines/.env.local",
        ".aws/credentials",
        ".ray/auth_token",
        "auth_token",
        "deploy.pem",
        ".netrc",
    )
    for name in names:
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text(f"PASSWORD={secret}")
    (tree / "visible").write_text(secret)
    archive = package(tree, tmp_path / "package.zip")
    assert archive.read_bytes().count(secret.encode()) == 1, (
        "only the one in the file `visible`, which zip leaves readable"
    )


# Nothing from storage is unpickled

PICKLERS = ("pickle", "marshal", "shelve", "joblib", "dill", "cloudpickle")
LOADERS = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "torch.load",
    "torch.jit.load",
    "joblib.load",
    "dill.load",
    "dill.loads",
    "cloudpickle.load",
    "cloudpickle.loads",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "pandas.read_pickle",
    "pd.read_pickle",
    "yaml.load",
    "yaml.unsafe_load",
    "eval",
    "exec",
}
EXCEPTIONS = {
    "pipelines/data/readers/pickles.py: pickle.Unpickler": "CIFAR's official files, restricted to arrays of bytes",
}
"""Where something is unpickled -> why that is safe."""


def unsafe(source: str) -> list[str]:
    """The calls and base classes in `source` that could run code from a file that they read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [node.func] if isinstance(node, ast.Call) else node.bases if isinstance(node, ast.ClassDef) else []
        for name in map(ast.unparse, names):
            options = {word.arg: ast.unparse(word.value) for word in getattr(node, "keywords", [])}
            if name == "torch.load" and options.get("weights_only") == "True":
                continue
            if name in LOADERS or options.get("allow_pickle") == "True":
                found.append(name)
        if isinstance(node, ast.ImportFrom) and node.module in (
            "pickle",
            "marshal",
            "shelve",
            "joblib",
            "dill",
            "cloudpickle",
        ):
            found.append(f"from {node.module} import")
    return found


def test_nothing_is_unpickled():
    files = [path for package in PRODUCT for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 50
    found = {f"{path.relative_to(ROOT)}: {name}" for path in files for name in unsafe(path.read_text())}
    assert found == set(EXCEPTIONS)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("torch.load(path)", ["torch.load"]),
        ("torch.load(path, weights_only=False)", ["torch.load"]),
        ("torch.load(path, weights_only=True)", []),
        ("class Mine(pickle.Unpickler): ...", ["pickle.Unpickler"]),
        ("np.load(path, allow_pickle=True)", ["np.load"]),
        ("np.load(path)", []),
        ("from pickle import loads", ["from pickle import"]),
        ("model.eval(); pickle.dumps(value); json.loads(text)", []),
    ],
)
def test_unpickling_is_detected(source: str, found: list[str]):
    assert unsafe(source) == found


# Paths stay inside the storage


def below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_names_cannot_write_outside_the_storage(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    storage = tmp_path / "a/b/storage"
    outside = tmp_path / "outside"
    names = ["--suite", "../../../outside", "--data.name", str(outside / "name"), "--method", "dense"]
    assert main(RECIPES["imagenet_epsd"], ["--smoke", "--storage", str(storage), *names]) == 0, capfd.readouterr().err
    assert {name for name in below(tmp_path) if not name.startswith("a/b/storage")} == {"a", "a/b"}
    [run_folder] = (storage / "runs").iterdir()
    assert re.fullmatch("[0-9a-f]{16}", run_folder.name), "run folders are named by a hash"
    artifacts = {path.name for path in (storage / "mlartifacts").rglob("*") if path.is_file()}
    assert artifacts == {"arch.json", "model.safetensors"}
    description = json.loads((run_folder / "run.json").read_text())
    assert description["experiment"]["data"]["name"] == str(outside / "name"), "stored as text"


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a/b", "..", ".hidden", ""])
def test_checkpoint_groups_must_be_file_names(name: str, tmp_path: Path):
    store = CheckpointStore(tmp_path / "storage/checkpoints")
    with pytest.raises(ValueError, match="file name"):
        store.save(1, {name: {"weight": torch.zeros(1)}}, {})
    assert not (tmp_path / "storage").exists()
    assert below(tmp_path) == set()


@pytest.mark.parametrize("name", ["../../outside", "sub/weights", 3])
def test_a_checkpoint_with_files_outside_its_folder_is_refused(name: object, tmp_path: Path):
    store = CheckpointStore(tmp_path / "storage/checkpoints")
    store.save(1, {"weights": {"weight": torch.zeros(1)}}, {})
    save_tensors(tmp_path / "storage/outside.safetensors", {"weight": torch.ones(1)})
    save_tensors(tmp_path / "storage/checkpoints/step-00000001/sub/weights.safetensors", {"weight": torch.ones(1)})
    write_json(tmp_path / "storage/checkpoints/step-00000001/state.json", {"groups": [name], "state": {}})
    with pytest.raises(ValueError, match=r"is broken.*file name"):
        store.latest()


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/elsewhere", "..", ""])
def test_a_run_with_teachers_outside_the_storage_is_refused(name: str, tmp_path: Path):
    student = RunFolder(tmp_path, "student")
    write_json(student.description, {"teachers": [name]})
    with pytest.raises(ValueError, match="file name"):
        closure(student, lambda teacher: RunFolder(tmp_path, teacher))
