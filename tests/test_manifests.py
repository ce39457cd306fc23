"""The manifests in cluster/manifests: valid by the tools' schemas, consistent with each other and with the lock."""

from __future__ import annotations

import configparser
import copy
import re
import shlex
import stat
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import cli
from pipelines.recipes import RECIPES
from tests.job_package import ROOT, checkout, package
from tests.manifest_fields import COMPOSE, KUBERNETES, misfits

MANIFESTS = ROOT / "cluster/manifests"
MIB = 2**20
KUBERAY = ("kuberay-raycluster.yaml", "kuberay-rayjob.yaml", "kuberay-nightly.yaml", "kuberay-network.yaml")
PYTHONS = {"ubuntu24.04": "3.12", "3.12-slim-bookworm": "3.12"}
"""Base image -> its Python version."""


def read(name: str) -> Any:
    return yaml.safe_load((MANIFESTS / name).read_text())


def locked(path: Path = ROOT / "requirements.lock") -> dict[str, str]:
    """Package -> version in a lock file."""
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ;]+)", path.read_text(), re.MULTILINE))


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, with continued lines joined and without comments."""
    lines = [line for line in (MANIFESTS / name).read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def arguments(name: str, instruction: str) -> list[str]:
    return [rest for word, rest in instructions(name) if word == instruction]


def clusters() -> list[dict[str, Any]]:
    """The two Ray clusters on Kubernetes."""
    return [read("kuberay-raycluster.yaml")["spec"], read("kuberay-rayjob.yaml")["spec"]["rayClusterSpec"]]


def pods() -> list[dict[str, Any]]:
    """Every pod template on Kubernetes."""
    groups = [group for cluster in clusters() for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return [*(group["template"] for group in groups), nightly_pod()]


def nightly_pod() -> dict[str, Any]:
    return read("kuberay-nightly.yaml")["spec"]["jobTemplate"]["spec"]["template"]


def commands() -> dict[str, str]:
    """File -> its shell line that starts an experiment."""
    [nightly] = nightly_pod()["spec"]["containers"]
    found = {
        "kuberay-rayjob.yaml": read("kuberay-rayjob.yaml")["spec"]["entrypoint"],
        "kuberay-nightly.yaml": nightly["args"][0],
    }
    lines = (MANIFESTS / "README.md").read_text().replace("\\\n", " ").splitlines()
    found |= {f"README.md, {line.strip()}": line for line in lines if line.startswith("    ") and "pipelines/" in line}
    return found


def manifest_files() -> Iterator[tuple[str, str]]:
    for path in sorted(MANIFESTS.iterdir()):
        if path.is_file() and path.suffix != ".lock":
            yield path.name, path.read_text()


# The Ray cluster launcher


def test_the_launcher_accepts_its_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read("ray-cluster-aws.yaml")
    validate_config(config)
    whole = prepare_config(copy.deepcopy(config))
    validate_config(whole)
    assert whole["available_node_types"]["spot-gpu"]["min_workers"] == 2
    config["available_node_types"]["spot-gpu"]["instances"] = 2
    with pytest.raises(Exception, match="instances"):
        validate_config(config)


def test_the_launcher_uses_spot_workers_and_sends_what_an_installation_needs():
    config = read("ray-cluster-aws.yaml")
    nodes = config["available_node_types"]
    assert nodes["spot-gpu"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert "InstanceMarketOptions" not in nodes["head"]["node_config"], "the head holds the cluster's state"
    mounts = {str(remote): local for remote, local in config["file_mounts"].items()}
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert all(remote == f"~/orchard/{local}" and (ROOT / local).exists() for remote, local in mounts.items())
    needed = {word for line in arguments("Dockerfile", "COPY") for word in line.split()[:-1]}
    assert needed <= set(mounts.values()), "everything that the image contains"
    assert {"Makefile", ".ci", "requirements.lock"} <= set(mounts.values()), "needed by make"
    assert any("make -C ~/orchard" in line for line in config["setup_commands"])


def test_the_launcher_starts_ray_with_a_token_and_without_open_ports():
    config = read("ray-cluster-aws.yaml")
    [_, head], [_, worker, watch] = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    assert "python -m cluster.spot_notice" in watch
    for line in (head, worker):
        assert "RAY_AUTH_MODE=token" in line.partition("ray start")[0]
    assert "--dashboard-host=127.0.0.1" in head
    port = re.search(r"--port=(\d+)", head)
    assert port is not None
    assert f"--address=$RAY_HEAD_IP:{port[1]}" in worker
    assert "chmod 600 ~/.ray/auth_token" in " ".join(config["setup_commands"])
    for node in config["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


# Kubernetes


@pytest.mark.parametrize("name", KUBERAY)
def test_kubernetes_files_use_known_fields(name: str):
    document = read(name)
    assert misfits(document, KUBERNETES[document["apiVersion"], document["kind"]], name) == []
    document["spec"]["replicaz"] = 1
    assert misfits(document, KUBERNETES[document["apiVersion"], document["kind"]], name) == [
        f"{name}.spec has 'replicaz', unknown"
    ]


def test_both_kubernetes_clusters_are_equal_and_require_a_token():
    permanent, of_a_job = clusters()
    assert permanent == of_a_job
    assert permanent["authOptions"] == {"mode": "token", "secretName": "orchard-ray-token"}
    head = permanent["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP", "not reachable from outside"
    [nightly] = nightly_pod()["spec"]["containers"]
    env = {entry["name"]: entry for entry in nightly["env"]}
    assert env["RAY_AUTH_MODE"]["value"] == "token"
    assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "orchard-ray-token", "key": "auth_token"}
    name = read("kuberay-raycluster.yaml")["metadata"]["name"]
    assert f"--address http://{name}-head-svc:8265 " in nightly["args"][0]


def test_pods_run_as_the_image_user_and_share_one_storage():
    [user] = {line.split(":")[0] for line in arguments("Dockerfile", "USER")}
    [image] = {container["image"] for pod in pods() for container in pod["spec"]["containers"]}
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert image == f"orchard:{version[1]}"
    assert f"-t {image} ." in (MANIFESTS / "Dockerfile").read_text(), "the image name of the build command"
    for pod in pods():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == int(user)
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
        mounts = {
            mount["name"]: mount["mountPath"] for item in spec["containers"] for mount in item.get("volumeMounts", [])
        }
        assert set(mounts) == {volume["name"] for volume in spec.get("volumes", [])}
        if "submit" not in pod["metadata"]["labels"].values():
            assert mounts == {"shared": "/shared", "memory": "/dev/shm"}


def test_the_network_policy_selects_existing_pods():
    policy = read("kuberay-network.yaml")["spec"]
    roles = {pod["metadata"]["labels"]["orchard/role"] for pod in pods()}
    assert policy["podSelector"]["matchLabels"] == {"orchard/role": "ray"}
    selected = [entry["podSelector"]["matchLabels"] for rule in policy["ingress"] for entry in rule["from"]]
    assert {label["orchard/role"] for label in selected if "orchard/role" in label} == roles == {"ray", "submit"}
    [_, others] = policy["ingress"]
    assert [port["port"] for port in others["ports"]] == [8265], "submitters reach only the dashboard"


# The images


def test_the_dockerfile_copies_existing_files_and_installs_what_ffcv_needs():
    for line in arguments("Dockerfile", "COPY"):
        assert all((ROOT / source).exists() for source in line.split()[:-1]), line
    ffcv = re.search(r'^packages="(.*)"', (ROOT / ".ci/install-ffcv").read_text(), re.MULTILINE)
    assert ffcv is not None
    for where in (" ".join(arguments("Dockerfile", "RUN")), " ".join(read("ray-cluster-aws.yaml")["setup_commands"])):
        assert set(ffcv[1].split()) <= set(where.split())
    installs = [line for line in arguments("Dockerfile", "RUN") if "-r requirements-ffcv.lock" in line]
    assert len(installs) == 1
    assert "--require-hashes --no-deps" in installs[0]


@pytest.mark.parametrize("name", ["Dockerfile", "mlflow.Dockerfile"])
def test_images_have_a_fixed_base_and_a_user_other_than_root(name: str):
    [base] = arguments(name, "FROM")
    assert re.fullmatch(r"[\w./-]+:[\w.-]*\d+\.\d+[\w.-]*", base), "the tag contains a version"
    user = arguments(name, "USER")
    assert len(user) == 1
    assert user[0].split(":")[0] not in ("0", "root")
    order = [word for word, _ in instructions(name)]
    assert "RUN" not in order[order.index("USER") :], "root owns the installed files"


@pytest.mark.parametrize(("name", "folder"), [("Dockerfile", ROOT), ("mlflow.Dockerfile", MANIFESTS)])
def test_only_copied_files_enter_a_build(name: str, folder: Path):
    lines = [line for line in (MANIFESTS / f"{name}.dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {word for line in arguments(name, "COPY") for word in line.split()[:-1]}
    assert let_in == copied
    assert all((folder / source).exists() for source in copied)


def test_versions_match_the_lock():
    lock, server = locked(), locked(MANIFESTS / "mlflow-server.lock")
    assert {cluster["rayVersion"] for cluster in clusters()} == {lock["ray"]}
    assert read("mlflow-compose.yaml")["services"]["mlflow"]["image"] == f"orchard-mlflow:{lock['mlflow']}"
    assert {name: server[name] for name in lock if name in server} == {n: v for n, v in lock.items() if n in server}
    asked = [line.split("[")[0] for line in (MANIFESTS / "mlflow-server.in").read_text().splitlines() if line[0] != "#"]
    assert set(asked) <= set(server)
    boto3 = re.findall(r"boto3==(\S+)", (MANIFESTS / "ray-cluster-aws.yaml").read_text())
    assert boto3 == [server["boto3"]]
    [base] = arguments("Dockerfile", "FROM")
    cuda = re.match(r"nvidia/cuda:(\d+\.\d+)\.", base)
    assert cuda is not None
    assert lock["cuda-toolkit"].startswith(f"{cuda[1]}.")


def test_orchard_supports_the_python_of_each_image():
    wanted = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert wanted is not None
    [cuda], [slim] = arguments("Dockerfile", "FROM"), arguments("mlflow.Dockerfile", "FROM")
    ami = read("ray-cluster-aws.yaml")["available_node_types"]["head"]["node_config"]["ImageId"]
    pythons = {PYTHONS[cuda.rpartition("-")[2]], PYTHONS[slim.partition(":")[2]]}
    assert "ubuntu-24.04" in ami, "the same Python as the image"
    assert pythons == {"3.12"}
    assert int(wanted[1]) <= 12 < int(wanted[2])


# Shell commands


@pytest.mark.parametrize("where", commands())
def test_commands_in_manifests_are_valid(where: str, tmp_path: Path):
    words = shlex.split(commands()[where].replace("$(date -u +%F)", "2026-01-31"), comments=True)
    script = next(number for number, word in enumerate(words) if word.startswith("pipelines/"))
    assert words[script - 1] == "python"
    assert (ROOT / words[script]).exists()
    recipe = RECIPES[Path(words[script]).stem]
    options = [word.replace("/shared", str(tmp_path)) for word in words[script + 1 :]]
    command = cli.parse(recipe, options)
    assert Path(command.placement.storage).is_absolute(), "a path that all nodes can access"
    if command.placement.workers:
        assert command.experiment.training.batch_size % command.placement.workers == 0


def test_the_readme_describes_each_file_and_each_change_me():
    readme = (MANIFESTS / "README.md").read_text()
    files = [name for name, text in manifest_files() if "CHANGE ME" in text and name != "README.md"]
    assert len(files) >= 3
    assert [name for name in files if name not in readme] == []
    for name, _ in manifest_files():
        assert name in readme or name.endswith(".dockerignore") or name == "README.md", (
            f"README.md does not describe {name}"
        )


# The compose file


def test_compose_uses_known_fields_and_defined_names():
    compose = read("mlflow-compose.yaml")
    assert misfits(compose, COMPOSE, "compose") == []
    for service in compose["services"].values():
        assert set(service["networks"]) <= set(compose["networks"])
        assert set(service.get("depends_on", {})) <= set(compose["services"])
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (MANIFESTS / source).is_file()
        if "build" in service:
            assert (MANIFESTS / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    healthy = compose["services"]["mlflow"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert healthy <= ("healthcheck" in compose["services"]["postgres"])


def test_compose_publishes_only_mlflow_on_loopback():
    compose = read("mlflow-compose.yaml")
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"mlflow": ["${MLFLOW_ADDRESS:-127.0.0.1}:5000:5000"]}
    assert compose["networks"]["inside"]["internal"] is True
    behind = [name for name, service in compose["services"].items() if service["networks"] == ["inside"]]
    assert sorted(behind) == ["artefacts", "postgres"]
    command = compose["services"]["mlflow"]["command"]
    assert "--app-name=basic-auth" in command
    assert "--allowed-hosts=${MLFLOW_ALLOWED_HOSTS:-localhost:5000,127.0.0.1:5000}" in command


def test_secrets_of_compose_come_from_the_environment():
    compose = read("mlflow-compose.yaml")
    secret = re.compile(r"PASSWORD|SECRET")
    named = {
        value
        for service in compose["services"].values()
        for name, value in service["environment"].items()
        if secret.search(name)
    }
    variables = {re.fullmatch(r"\$\{(\w+):\?see README.md\}", value) for value in named}
    assert None not in variables, "compose does not start without them"
    names = {match[1] for match in variables if match}
    assert names == {"POSTGRES_PASSWORD", "ARTEFACTS_SECRET_KEY", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_SECRET_KEY"}
    readme = (MANIFESTS / "README.md").read_text()
    assert all(name in readme for name in names)
    auth = configparser.ConfigParser()
    auth.read(MANIFESTS / "mlflow-auth.ini")
    assert "admin_password" not in auth["mlflow"]
    assert auth["mlflow"]["default_permission"] == "NO_PERMISSIONS"
    uris = [auth["mlflow"]["database_uri"]]
    uris += [word.partition("=")[2] for word in compose["services"]["mlflow"]["command"] if "backend-store-uri" in word]
    assert set(uris) == {"postgresql+psycopg2://mlflow@postgres:5432/mlflow"}, (
        "one database; its address contains no password"
    )


# The package of a job

DUMMIES = (
    ".git/objects/pack",
    ".venv/lib/torch.so",
    ".venv-3.12/lib/torch.so",
    "storage/runs/0123456789abcdef/model.safetensors",
    "storage/runs/0123456789abcdef/result.json",
    "storage/mlflow.db",
    "storage-old/mlflow.db",
    "results/runs.parquet",
    "data/imagenet/train.tar",
    "train.beton",
    "pipelines/data/val.beton",
    "ILSVRC2012_img_val.tar",
    "cifar-10-python.tar.gz",
    "pipelines/__pycache__/cli.cpython-311.pyc",
    ".pytest_cache/v/cache",
    ".ruff_cache/content",
    ".cache/torch/hub/resnet.pth",
    "mlruns/0/artifact",
    "build/lib/all",
)


@pytest.mark.parametrize("gitignore", [True, False])
def test_a_job_package_contains_the_code_and_is_small(gitignore: bool, tmp_path: Path):
    tree = checkout(tmp_path / "tree")
    code = {str(path.relative_to(tree)) for path in tree.rglob("*.py")}
    for name in DUMMIES:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        with (tree / name).open("wb") as file:
            file.truncate(30 * MIB)
    archive = package(tree, tmp_path / "package.zip", gitignore)
    with zipfile.ZipFile(archive) as content:
        sent = set(content.namelist())
    assert archive.stat().st_size < 20 * MIB
    assert "pipelines/imagenet_epsd.py" in sent
    assert code - sent == set(), "all code, including pipelines/data"
    assert sent & set(DUMMIES) == set()


def test_job_settings_are_strings():
    settings = read("runtime_env.yaml")
    assert set(settings) == {"excludes", "env_vars"}
    assert all(isinstance(value, str) for value in settings["env_vars"].values()), "Ray refuses numbers"
    of_the_job = yaml.safe_load(read("kuberay-rayjob.yaml")["spec"]["runtimeEnvYAML"])
    assert of_the_job == {"env_vars": settings["env_vars"]}


def test_manifests_are_installed_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "manifests/*" in project["tool"]["setuptools"]["package-data"]["cluster"]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in MANIFESTS.iterdir() if path.is_file()}
    assert not [name for name, mode in modes.items() if mode & 0o022], "only the owner may write them"
