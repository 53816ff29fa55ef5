"""Bundles of `kdbench-submit`, held against themselves and scored again: docs/submitting.md.

python -m kdbench.verify BUNDLE... [--take]
"""

import sys
from pathlib import Path

from kdbench.config.arguments import Parser, tell
from kdbench.errors import KdbenchError
from kdbench.system.escapes import for_terminal


def main() -> None:
    """`kdbench-verify`."""
    parser = Parser(
        prog="kdbench-verify",
        description="Say of each bundle whether it is accepted, or why not; exit code 1 where one "
        "is not.",
        epilog="Nothing in a bundle runs code. The data set must be there: its test images are "
        "scored. A teacher's bundle comes before those that it taught.",
    )
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--root", metavar="DIR", help="where the data sets are (default: KDBENCH_DATA, else data)"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="the ledger (default: %(default)s)"
    )
    parser.add_argument(
        "--take", action="store_true", help="put what is accepted into the ledger; it must exist"
    )
    given = parser.parse_args()
    if given.take and not given.results.is_dir():
        parser.error(f"{given.results} does not exist: name the ledger with --results")
    from kdbench.ledger.verified import accept
    from kdbench.submissions.teachers import known_teachers
    from kdbench.submissions.verification import Verifier  # imports torch

    refused = 0
    try:
        verifier = Verifier(given.root, known_teachers(given.results))
    except KdbenchError as error:
        tell(f"error: {error}")
        sys.exit(error.exit_code)
    for bundle in given.bundles:
        try:
            found = verifier.verify(bundle)
            words = f"accepted, {found.record.run_id} by {found.by}: its weights score "
            words += f"{found.top1:.2f} on {found.images} images, its record {found.record.summary}"
            if given.take:
                path = accept(given.results, found)
                words += f"; it is in {path}"
            print(for_terminal(f"{bundle}: {words}"))
        except KdbenchError as error:
            tell(f"{bundle}: refused: {error}")
            refused += 1
    sys.exit(int(refused > 0))


if __name__ == "__main__":
    main()
