"""Any recipe by its name: python pipelines/run.py RECIPE --help"""

import sys
from collections.abc import Sequence

from cluster.exit import exit_process
from compression.choose import choose
from pipelines import cli
from pipelines.progress import refusing
from pipelines.recipes import RECIPES


@refusing(ValueError)
def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe that the first word names with the options that follow; exit statuses as `cli.main`."""
    name, *options = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: pipelines/run.py RECIPE [OPTIONS]\n\n{recipes()}\n\nOptions: pipelines/run.py RECIPE --help")
        return 0
    return cli.main(choose("recipe", name, RECIPES), options, program=f"pipelines/run.py {name}")


def recipes() -> str:
    """A line for each recipe: its name and the first line of its docstring."""
    width = max(map(len, RECIPES))
    return "\n".join(f"  {name:{width}}  {(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items())


if __name__ == "__main__":
    exit_process(main())
