"""The difference between two methods' scores, and whether it is significant, in one line.

    python -m kdbench.compare dkd kd

A side is a cell (cifar100-resnet32-resnet8-kd), its method where that is unambiguous, or a run: its
id with or without the hash, its folder or its record. docs/statistics.md explains the line.
"""

import sys
from pathlib import Path

from kdbench.config.arguments import Parser, tell
from kdbench.errors import KdbenchError
from kdbench.ledger.comparison import RUNS, compare
from kdbench.system.escapes import for_terminal


def main() -> None:
    """`kdbench-compare`."""
    parser = Parser(prog="kdbench-compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("first", metavar="A", help="a cell, a method, or a run (id or path)")
    parser.add_argument("second", metavar="B", help="the baseline: a cell, a method, or a run")
    usual = " and ".join(map(str, RUNS))
    parser.add_argument(
        "--runs", nargs="+", type=Path, default=[], help=f"folders to look in (default: {usual})"
    )
    arguments = parser.parse_args()
    try:
        print(for_terminal(compare(arguments.first, arguments.second, arguments.runs)))
    except KdbenchError as error:
        tell(f"error: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
