"""Send finished runs to Weights & Biases under their own ids, from local files alone.

    python -m kdbench.sync runs results/runs --mode online

A second call sends runs that are new or have changed. W&B replaces a run that is sent again.
"""

import sys
from pathlib import Path
from shlex import quote

from kdbench.config.arguments import Parser
from kdbench.config.hydra_cli import fail, print_error
from kdbench.errors import ConfigError, KdbenchError
from kdbench.system.escapes import for_terminal
from kdbench.tracking.sending import sync, unfinished
from kdbench.tracking.wandb_mirror import Target
from kdbench.tracking.wandb_names import folder_of, mode_of, place_of


def main() -> None:
    """`kdbench-sync`."""
    parser = Parser(prog="kdbench-sync", description=__doc__.split("\n")[0])
    parser.add_argument(
        "paths", nargs="*", type=Path, default=[Path("runs")], help="folders of runs or of records"
    )
    parser.add_argument("--project", help="of W&B (default: WANDB_PROJECT, or kdbench)")
    parser.add_argument("--entity", help="user or team (default: WANDB_ENTITY, or your login's)")
    parser.add_argument(
        "--mode", choices=("offline", "online"), help="default: WANDB_MODE, or offline"
    )
    parser.add_argument("--only", choices=("done", "failed"), help="leave the other runs out")
    parser.add_argument(
        "--dir",
        type=Path,
        help="for offline runs, and the note of what was sent (default: WANDB_DIR, or runs/.sync)",
    )
    given = parser.parse_args()
    folder = folder_of(given.dir, Path("runs/.sync"))
    try:
        target = Target(*place_of(given.project, given.entity), mode_of(given.mode), folder)
        if target.mode == "disabled":
            raise ConfigError("WANDB_MODE=disabled, so nothing is sent: give --mode")
        sent, known, problems = sync(given.paths, target, given.only)
    except KdbenchError as error:
        fail(str(error), error.exit_code)
    except OSError as error:
        fail(str(error), KdbenchError.exit_code)
    for path in unfinished(given.paths):
        print(for_terminal(f"{path} has no record yet: its command goes on with it"))
    for line in problems:
        print_error(line)
    word = "written" if target.mode == "offline" else "sent"
    print(f"{sent} runs {word}, {known} {word} before")
    if target.mode == "offline" and sent + known:
        print(for_terminal(f"send them with: wandb sync {quote(str(folder))}/wandb/offline-run-*"))
    if problems:
        sys.exit(KdbenchError.exit_code)


if __name__ == "__main__":
    main()
