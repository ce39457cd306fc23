"""Tables and figures from the tracked runs: `python benchmarks/tables.py [NAME ...]`; no name: all that have runs.

Of one's own runs: `python benchmarks/tables.py --storage DIR --suite NAME`, on the screen, and in --out if it is given.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.collect import collect, finished, read_runs, tracker
from benchmarks.figures import draw
from benchmarks.formats import as_csv, as_markdown, notes, readable
from benchmarks.latex import as_latex
from benchmarks.rows import Row, build
from benchmarks.suites import TABLES, Table, own
from cluster.atomic import write_atomically
from compression.choose import choose
from pipelines.progress import refusing

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"


def show(table: Table, rows: Sequence[Row], markdown: str) -> None:
    """Print a table: drawn on a terminal, with short run ids; as Markdown elsewhere."""
    if not sys.stdout.isatty():
        print(markdown)
        return
    from rich.console import Console
    from rich.table import Table as Drawing
    from rich.text import Text

    headings, cells = readable(table, rows)
    drawing = Drawing(*headings, "runs", title=table.title, caption="\n\n".join(notes(table, rows)))
    for own_cells, row in zip(cells, rows, strict=True):
        short = " ".join(run_id[:8] for run_id in row.run_ids)
        drawing.add_row(*(Text(cell) for cell in (*own_cells, short)))
    Console().print(drawing)


def check(texts: dict[Path, str], folders: Sequence[Path], chosen: bool) -> bool:
    """Whether the files in `folders` are `texts` byte for byte, and no others (with `chosen` others may be there).

    Prints every difference.
    """
    equal = True
    for path, text in texts.items():
        found = path.read_bytes() if path.exists() else b""
        if found != text.encode():
            equal = False
            print(f"{path} is missing" if not path.exists() else f"{path} differs from the runs")
            if path.suffix != ".svg":
                old, new = (part.splitlines(keepends=True) for part in (found.decode(errors="replace"), text))
                print("".join(difflib.unified_diff(old, new, str(path), f"{path.name} from the runs")))
    for path in (path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())):
        if path.stem.partition("-")[0] not in TABLES and not path.name.startswith("."):
            equal = False
            print(f"{path} belongs to no table in benchmarks/suites: delete it, or describe it there")
        elif path not in texts and not chosen:
            equal = False
            print(f"{path} has no runs behind it")
    return equal


@refusing(ValueError, ConnectionError)
def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all is well, 1 if --check found a difference, 2 for an error that the user has to correct."""
    options = _parser().parse_args(arguments)
    for name in options.names:
        choose("table", name, TABLES)
    uri = f"sqlite:///{options.storage.absolute()}/mlflow.db" if options.storage else options.tracking_uri
    if options.check and uri:
        raise ValueError("--check compares the tables with the Parquet file and writes nothing: leave out the store")
    if options.suite:
        if not uri or options.names:
            raise ValueError("--suite shows one's own runs: give --storage DIR or --tracking-uri URI, and no NAME")
        return _show_own(uri, options.suite, options.out, options.figures)
    parquet, out, pictures = _places(options)
    if uri:
        names = options.names or _with_runs(tracker(uri).suites())
        for suite in sorted({TABLES[name].suite for name in names}):
            collect(uri, suite, parquet)
    runs = read_runs(parquet)
    names = options.names or _with_runs({run["suite"] for run in runs})
    built = {name: build(TABLES[name], runs) for name in names}
    source = str(parquet.relative_to(ROOT) if parquet.is_relative_to(ROOT) else parquet)
    texts: dict[Path, str] = {}
    for name, rows in built.items():
        texts |= files_of(name, TABLES[name], rows, source, out, pictures)
    if options.check:
        return 0 if check(texts, [out, *([pictures] if pictures else [])], bool(options.names)) else 1
    for path, text in texts.items():
        write_atomically(path, text.encode())
    for name, rows in built.items():
        show(TABLES[name], rows, texts[out / f"{name}.md"])
    return 0


def files_of(
    name: str, table: Table, rows: Sequence[Row], source: str, out: Path, pictures: Path | None
) -> dict[Path, str]:
    """File -> content of a table in `out`, and of its figures in `pictures`. source: of its runs."""
    figures = {} if pictures is None else {pictures / file: svg for file, svg in draw(name, table, rows).items()}
    return _texts(out / name, name, table, rows, source) | figures


def _places(options: argparse.Namespace) -> tuple[Path, Path, Path | None]:
    """Of the collected runs, the tables and the figures. The project's own results/ are written only when asked.

    Where the tables have a place of their own, figures are drawn only if they have one, too.
    """
    if options.tracking_uri and not options.track and not (options.runs and options.out):
        raise ValueError("--tracking-uri needs --track, which writes the project's results/, or both --runs and --out")
    place = RESULTS if options.track or not options.storage else options.storage
    pictures = options.figures or (None if options.out else place / "figures")
    return options.runs or place / "runs.parquet", options.out or place / "tables", pictures


def _show_own(uri: str, suites: Sequence[str], out: Path | None, pictures: Path | None) -> int:
    """The finished runs of any suites as tables; nothing is written but to `out`, and figures to `pictures`."""
    store = tracker(uri)
    for suite in suites:
        runs = finished(store, suite)
        if not runs:
            raise ValueError(f"suite {suite!r} has no finished runs in {store.uri}")
        table = own(suite)
        rows = build(table, runs)
        texts = _texts((out or Path()) / suite, f"--suite {suite}", table, rows, store.uri)
        files = texts if out is not None else {}
        if pictures is not None:
            files = files | {pictures / file: svg for file, svg in draw(suite, table, rows).items()}
        for path, text in files.items():
            write_atomically(path, text.encode())
        show(table, rows, texts[(out or Path()) / f"{suite}.md"])
    return 0


def _texts(stem: Path, made_by: str, table: Table, rows: Sequence[Row], source: str) -> dict[Path, str]:
    """File -> content, of each form of a table. made_by: what follows tables.py in the command that makes it."""
    return {
        stem.with_name(f"{stem.name}.csv"): as_csv(table, rows),
        stem.with_name(f"{stem.name}.md"): as_markdown(made_by, table, rows, source),
        stem.with_name(f"{stem.name}.tex"): as_latex(made_by, table, rows, source),
    }


def _with_runs(suites: set[str]) -> list[str]:
    """The tables of `suites`; all tables if there are none, so that the error names what is missing."""
    return [name for name, table in TABLES.items() if table.suite in suites] or list(TABLES)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TABLES)}; default: all that have runs")
    store = parser.add_mutually_exclusive_group()
    store.add_argument("--tracking-uri", metavar="URI", help="first collect the finished runs from this MLflow")
    store.add_argument("--storage", metavar="DIR", type=Path, help="the same, from the MLflow in this storage folder")
    parser.add_argument("--track", action="store_true", help="write results/ of this project; else into the storage")
    parser.add_argument(
        "--runs", type=Path, help="the collected runs (default: runs.parquet in results/ or the storage)"
    )
    parser.add_argument("--suite", action="append", metavar="NAME", help="show the runs of this MLflow experiment")
    parser.add_argument("--out", type=Path, help="folder of the tables (default: tables/ beside them; --suite: none)")
    parser.add_argument(
        "--figures",
        type=Path,
        help="folder of the figures (default: figures/ beside the runs; with --out or --suite: none)",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if tables or figures differ")
    return parser


if __name__ == "__main__":
    sys.exit(main())
