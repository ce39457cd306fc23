"""Provenance: the commits of the code that made a run, and whether files differed from them."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

UNKNOWN = "unknown"
"""A value like any other: code without git history, and without a commit that came with it."""

CERTAINTY = ("false", UNKNOWN, "true")
"""Values of "dirty", in ascending order of what may be wrong with a run."""


def provenance() -> dict[str, str]:
    """The commit of this code, and whether files differ from it (apart from the tables in results/)."""
    top = _git("rev-parse", "--show-toplevel")
    # An unpacked archive may lie inside a repository of something else.
    if top is not None and Path(top).resolve() == ROOT and (commit := _git("rev-parse", "HEAD")):
        changes = _git("status", "--porcelain", "--", ":/", ":(top,exclude)results")
        return {"commit": commit, "dirty": UNKNOWN if changes is None else str(bool(changes)).lower()}
    commit = os.environ.get("ORCHARD_COMMIT") or _carried() or UNKNOWN
    return {"commit": commit, "dirty": UNKNOWN}


def resumed(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """The tags of a run that goes on: those of `now`, with all commits in their order, and dirty if it ever was."""
    commits = [commit for commit in before.get("commit", "").split(", ") if commit]
    if (commit := now.get("commit")) and commits[-1:] != [commit]:
        commits.append(commit)
    joined = {"commit": ", ".join(commits)} if commits else {}
    return with_dirty({**before, **now, **joined}, before.get("dirty"))


def with_dirty(tags: Mapping[str, str], other: str | None) -> dict[str, str]:
    """`tags`, dirty if they or those with the value `other` are; None: not recorded."""
    values = [value for value in (tags.get("dirty"), other) if value in CERTAINTY]
    return {**tags, "dirty": max(values, key=CERTAINTY.index)} if values else dict(tags)


def _git(*arguments: str) -> str | None:
    """What git prints; None where it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _carried() -> str | None:
    """The commit that came with the code: in an archive made by git, or in the part of .git that a job's package has.

    cluster/manifests/runtime_env.yaml sends .git/HEAD and the names of commits with the code, and nothing else of .git.
    """
    exported = _text(Path(__file__).with_name("commit.txt"))
    if exported and "$" not in exported:
        return exported
    head = _text(ROOT / ".git/HEAD")
    if not head.startswith("ref: "):
        return head or None
    name = head.removeprefix("ref: ")
    packed = [line.split() for line in _text(ROOT / ".git/packed-refs").splitlines()]
    found = [words[0] for words in packed if len(words) == 2 and words[1] == name]
    return _text(ROOT / ".git" / name) or (found[0] if found else None)


def _text(path: Path) -> str:
    """The content of a small file; empty where it is missing."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
