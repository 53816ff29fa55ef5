"""Tables from the ledger, one for each pair and protocol.

python -m kdbench.table runs/quickstart
"""

import sys
from pathlib import Path

from kdbench.config.arguments import Parser, tell
from kdbench.errors import ConfigError, KdbenchError, nearest
from kdbench.ledger.formats import FORMATS, render
from kdbench.ledger.ledger import Table, open_ledger, tables
from kdbench.ledger.published import FILE, usual
from kdbench.ledger.transfers import find_probes, is_folder, markdown
from kdbench.system.escapes import for_terminal


def selected(made: list[Table], protocol: str | None) -> list[Table]:
    """Return the tables of one protocol, or all.

    Raises:
        ConfigError: no run follows `protocol`.
        KdbenchError: there is no table.
    """
    if not made:
        raise KdbenchError(
            "no records: make some, for instance with kdbench-train method=ce, "
            "or name a folder of runs"
        )
    chosen = [table for table in made if protocol in (None, table.protocol)]
    if not chosen:
        raise ConfigError(
            f"no run follows protocol '{protocol}': "
            + nearest(str(protocol), {table.protocol for table in made})
        )
    return chosen


def transfers(paths: list[Path], protocol: str | None, form: str) -> list[str]:
    """Return the tables of transfer results, which are Markdown; none beside another medium's.

    Raises:
        KdbenchError: a record is damaged.
    """
    found = {} if protocol else find_probes(paths)
    if form != "md" and found:
        tell("warning: tables of transfer results are left out, they are Markdown: --format md")
        return []
    return [markdown(move, probes) for move, probes in found.items()]


def main() -> None:
    """`kdbench-table`."""
    parser = Parser(prog="kdbench-table", description=__doc__.split("\n")[0])
    parser.add_argument(
        "paths", nargs="*", type=Path, default=[Path("runs")], help="folders of runs or of records"
    )
    parser.add_argument("--format", choices=FORMATS, default="md", help="md is the default")
    parser.add_argument("--protocol", help="print only the tables of this one")
    parser.add_argument(
        "--published", type=Path, help=f"published scores; {FILE} where there is one"
    )
    parser.add_argument(
        "--baseline",
        metavar="CELL",
        help="what gains are over: a method, a row or a cell of the tables (default: kd)",
    )
    arguments = parser.parse_args()
    problems: tuple[str, ...] = ()
    made: list[Table] = []
    try:
        published = arguments.published or usual()
        of_runs = [path for path in arguments.paths if not is_folder(path)]
        ledger = open_ledger(of_runs, published, arguments.baseline)
        problems, made = ledger.problems, [table for table in tables(ledger) if table.run]
        for line in problems:
            tell(f"{'warning' if made else 'error'}: {line}")
        moved = transfers(arguments.paths, arguments.protocol, arguments.format)
        if made or not moved:
            print(for_terminal(render(selected(made, arguments.protocol), arguments.format)))
        for number, text in enumerate(moved):
            print(for_terminal(f"\n{text}" if made or number else text))
    except KdbenchError as error:
        # Where no table is left, the runs that were left out explain it.
        if made or not problems:
            tell(f"error: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
