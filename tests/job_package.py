"""The package of `ray job submit --working-dir . --runtime-env cluster/manifests/runtime_env.yaml`, by Ray's code."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
RUNTIME_ENV = ROOT / "cluster/manifests/runtime_env.yaml"
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "storage", "__pycache__", ".*_cache", "*.egg-info", "build")


def sources() -> list[str]:
    """The files of the checkout that git does not ignore, committed or not. Without git: all but caches and storage."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
    hidden = NOT_COPIED(str(ROOT), [path.name for path in ROOT.iterdir()])
    tops = [path for path in ROOT.iterdir() if path.name not in hidden]
    files = [file for top in tops for file in ([top] if top.is_file() else top.rglob("*")) if file.is_file()]
    return [str(file.relative_to(ROOT)) for file in files if "__pycache__" not in file.parts]


def checkout(target: Path) -> Path:
    """A copy of the checkout's files."""
    for name in sources():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
    return target


def package(tree: Path, archive: Path, gitignore: bool = True) -> Path:
    """Write what Ray would send of `tree` to the zip file `archive`. gitignore: whether Ray applies .gitignore."""
    from ray._private.runtime_env.packaging import create_package
    from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

    def write(directory: str, excludes: list[str] | None = None, is_file: bool = False) -> None:
        assert not is_file
        create_package(directory, archive, include_gitignore=gitignore, excludes=excludes)

    settings: dict[str, Any] = {**yaml.safe_load(RUNTIME_ENV.read_text()), "working_dir": str(tree)}
    sent = upload_working_dir_if_needed(settings, include_gitignore=gitignore, upload_fn=write)
    assert sent["working_dir"].startswith("gcs://_ray_pkg_")
    return archive
