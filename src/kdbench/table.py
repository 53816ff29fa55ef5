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
        ledger = open_ledger(arguments.paths, published, arguments.baseline)
        problems, made = ledger.problems, [table for table in tables(ledger) if table.run]
        for line in problems:
            tell(f"{'warning' if made else 'error'}: {line}")
        print(for_terminal(render(selected(made, arguments.protocol), arguments.format)))
    except KdbenchError as error:
        # Where no table is left, the runs that were left out explain it.
        if made or not problems:
            tell(f"error: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
