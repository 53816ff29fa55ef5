"""`results/tables` and `results/index.html` from `results/runs` and `results/published.csv`.

    python -m kdbench.report [--check] [--take RUNS] [--results DIR]

Outside a checkout, `--take RUNS --results DIR` makes the page and tables from any folder of runs,
without published scores.
"""

import sys
from pathlib import Path

from kdbench.config.arguments import Parser, tell
from kdbench.errors import KdbenchError
from kdbench.ledger.results_folder import PAGE, TABLES, differing, made, stale, take
from kdbench.records.record import record_files
from kdbench.system.files import write_atomically


def main() -> None:
    """`kdbench-report`."""
    parser = Parser(prog="kdbench-report", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where a file differs"
    )
    parser.add_argument(
        "--take",
        type=Path,
        metavar="RUNS",
        help="first copy the records of this folder's runs; outside a checkout it is all one needs",
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where (default: %(default)s)"
    )
    arguments = parser.parse_args()
    results: Path = arguments.results
    if arguments.take is None and not (results / "runs").is_dir():
        tell(
            f"error: {results / 'runs'} does not exist: give --take RUNS, a folder of runs to make "
            "the page from, or run this in the root of a checkout"
        )
        sys.exit(1)
    damaged: list[str] = []
    if arguments.take is not None:
        try:
            count, damaged = take(arguments.take, results)
        except KdbenchError as error:
            tell(f"error: {error}")
            sys.exit(error.exit_code)
        print(f"{count} records copied to {results / 'runs'}")
    files, ledger = made(results)
    if not record_files([results / "runs"]):
        damaged.append(f"there are no records in {results / 'runs'}: every cell is not run")
    for line in [*damaged, *ledger.problems]:
        tell(f"warning: {line}")
    if arguments.check:
        lines = differing(results, files)
        for line in lines:
            tell(f"error: {line}: run python -m kdbench.report")
        sys.exit(int(bool(lines)))
    for path in list(stale(results, files)):
        path.unlink()
    (results / TABLES).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_atomically(results / name, text.encode())
    print(f"{len(files)} files in {results / TABLES} and {results / PAGE}")


if __name__ == "__main__":
    main()
