"""The files for people and services around the code: CI, hooks, issue forms, changelog, citation, typed packages."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("compression", "cluster", "pipelines", "benchmarks")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def read(path: Path | str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in read(workflow)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_targets_of_the_makefile_and_pins_its_actions(workflow: Path):
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"])
        else:
            program, target, *_ = shlex.split(step["run"])
            assert program == "sudo" or (program == "make" and target in make_targets()), step["run"]


def test_ci_lints_and_tests_every_python_that_the_project_supports():
    jobs = read(".github/workflows/ci.yml")["jobs"]
    lowest, highest = re.findall(r"3\.(\d+)", PROJECT["project"]["requires-python"])
    assert jobs["test"]["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(int(lowest), int(highest))]
    commands = (ROOT / ".ci/run").read_text().splitlines()
    assert commands[-2:] == ["make lint", "make test"]


def test_ci_installs_the_packages_that_ffcv_needs():
    [packages] = re.findall(r'^packages="(.*)"', (ROOT / ".ci/install-ffcv").read_text(), re.MULTILINE)
    [install] = [step["run"] for step in steps(ROOT / ".github/workflows/ci.yml") if "apt-get" in step.get("run", "")]
    assert install.endswith(packages)


def test_the_hooks_are_local_and_use_the_tools_of_make_lint():
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in read(".pre-commit-config.yaml")["repos"]} == {"local"}
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint is not None
    tools = set(re.findall(r"\$\(BIN\)/(\w+)", lint[1]))
    assert {Path(hook["entry"].split()[0]).name for hook in hooks if hook["entry"].startswith(".venv")} == tools


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_asks_for_something(form: Path):
    found = read(form)
    assert {"name", "description", "body"} <= set(found)
    assert any(item.get("validations", {}).get("required") for item in found["body"])
    assert len({item["id"] for item in found["body"]}) == len(found["body"])


def test_changelog_citation_and_project_name_the_same_version():
    version = PROJECT["project"]["version"]
    released = re.findall(r"^## \[(.+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[:2] == ["Unreleased", version]
    citation = read("CITATION.cff")
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", version)
    assert citation["license"] == PROJECT["project"]["license"]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_typed_and_says_so_where_it_is_installed(package: str):
    assert (ROOT / package / "py.typed").exists()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"][package]
