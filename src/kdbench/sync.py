"""Finished runs to Weights & Biases, whole and under their own ids, from local files alone.

    python -m kdbench.sync runs results/runs --mode online

A second call sends what is new or has changed. W&B replaces a run that is sent again.
"""

import argparse
import sys
from pathlib import Path

from kdbench.config.hydra_cli import fail, print_error
from kdbench.errors import KdbenchError
from kdbench.tracking.sending import sync, unfinished
from kdbench.tracking.wandb_mirror import Target


def main() -> None:
    """`kdbench-sync`."""
    parser = argparse.ArgumentParser(prog="kdbench-sync", description=__doc__.split("\n")[0])
    parser.add_argument(
        "paths", nargs="*", type=Path, default=[Path("runs")], help="folders of runs or of records"
    )
    parser.add_argument("--project", default="kdbench", help="of W&B (default: %(default)s)")
    parser.add_argument("--entity", help="user or team (default: the one of your login)")
    parser.add_argument("--mode", choices=("offline", "online"), default="offline")
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path("runs/.sync"),
        help="for offline runs, and the note of what was sent (default: %(default)s)",
    )
    given = parser.parse_args()
    target = Target(given.project, given.entity, given.mode, given.dir)
    try:
        sent, known, problems = sync(given.paths, target)
    except (KdbenchError, OSError) as error:
        fail(str(error), KdbenchError.exit_code)
    for folder in unfinished(given.paths):
        print(f"{folder} has no record yet: its command goes on with it")
    for line in problems:
        print_error(line)
    done = "written" if given.mode == "offline" else "sent"
    print(f"{sent} runs {done}, {known} {done} before")
    if given.mode == "offline" and sent + known:
        print(f"send them with: wandb sync {given.dir}/wandb/offline-run-*")
    if problems:
        sys.exit(KdbenchError.exit_code)


if __name__ == "__main__":
    main()
