"""A finished run as one file for the ledger of others: docs/submitting.md.

python -m kdbench.submit runs/cifar100/cifar100-resnet32x4-resnet8x4-kd-s0-84a3d60b --by "A Lab"
"""

import sys
from pathlib import Path

from kdbench.config.arguments import Parser, tell
from kdbench.errors import KdbenchError


def main() -> None:
    """`kdbench-submit`."""
    parser = Parser(
        prog="kdbench-submit",
        description="Write the bundle of a finished run: its record with its curve, the student's "
        "weights and their passport, and the environment; some 5 MB for a small student.",
        epilog="Then send it as docs/submitting.md says. kdbench-verify says beforehand whether it "
        "will be accepted.",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its name")
    parser.add_argument(
        "--by", required=True, metavar="NAME", help="who computed it, as the ledger shall show it"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where runs are (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: RUN.zip here")
    given = parser.parse_args()
    from kdbench.submissions.bundle import write_bundle  # imports torch, once all is understood

    try:
        path = write_bundle(given.run, given.by, given.runs, given.out)
    except KdbenchError as error:
        tell(f"error: {error}")
        sys.exit(error.exit_code)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
