"""Identities of stored runs stay what they are: command lines with the identities that they had when they were written.

tests/golden/identities.json maps a command line to the identities of its experiment and of its controls. To add one,
write the command line with an empty text and run `python tests/test_identity.py --write`.
If an identity changes, every stored run of that command is unknown: change the code, not the file.
tests/golden/options.json maps a recipe to the options of its --help-all. An option may be renamed, but not lost.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.recipes import RECIPES

GOLDEN = Path(__file__).parent / "golden" / "identities.json"
KNOWN: dict[str, str] = json.loads(GOLDEN.read_text())
OPTIONS: dict[str, str] = json.loads(GOLDEN.with_name("options.json").read_text())


def identities(command: str, storage: Path) -> str:
    """Of the experiment that a command line means, and of its controls; `storage` takes what smoke runs write."""
    recipe, *options = command.split()
    experiment = cli.parse(RECIPES[recipe], [*options, "--storage", str(storage)]).experiment
    return " ".join(each.identity for each in (experiment, *cli.controls(experiment)))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.mark.parametrize("command", KNOWN)
def test_a_command_means_the_experiments_that_it_meant(command: str, storage: Path):
    assert identities(command, storage) == KNOWN[command]


def test_every_recipe_is_frozen():
    assert {command.split()[0] for command in KNOWN} == set(RECIPES)
    # If more commands had equal identities, options would do nothing.
    assert len(set(KNOWN.values())) > 120


@pytest.mark.parametrize("recipe", OPTIONS)
def test_no_option_is_lost(recipe: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(RECIPES[recipe], ["--help-all"])
    found = set(re.findall(r"(?:^[│|\s]*|, )(--[\w.-]+)", capsys.readouterr().out, re.MULTILINE))
    assert [option for option in OPTIONS[recipe].split() if cli.RENAMED.get(option, option) not in found] == []


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], "to write the file anew: python tests/test_identity.py --write"
    with tempfile.TemporaryDirectory() as folder:
        found = {command: identities(command, Path(folder)) for command in KNOWN}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
