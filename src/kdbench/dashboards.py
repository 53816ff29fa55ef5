"""The W&B workspace and report of the benchmark, as code.

    python -m kdbench.dashboards --entity NAME runs results/runs

They show what `logger=wandb` and `kdbench-sync` send; the report has a section for each pair
and protocol of the records at PATHS.
"""

from pathlib import Path

from kdbench.config.arguments import Parser
from kdbench.config.hydra_cli import fail
from kdbench.errors import KdbenchError
from kdbench.records.record import find_records
from kdbench.tracking.wandb_mirror import read_own_settings
from kdbench.tracking.wandb_names import place_of
from kdbench.tracking.workspace import pairs_of, report, workspace


def main() -> None:
    """`kdbench-dashboards`."""
    summary = __doc__.split("\n")[0]
    parser = Parser(prog="kdbench-dashboards", description=summary)
    parser.add_argument(
        "paths", nargs="*", type=Path, default=[Path("runs")], help="folders of runs or of records"
    )
    parser.add_argument("--project", help="of W&B (default: WANDB_PROJECT, or kdbench)")
    parser.add_argument("--entity", help="user or team (default: WANDB_ENTITY)")
    given = parser.parse_args()
    project, entity = place_of(given.project, given.entity)
    if entity is None:
        fail("dashboards are somebody's: give --entity NAME, a user or a team", 2)
    place = entity, project
    try:
        read_own_settings()
        made = workspace(*place), report(*place, pairs_of(find_records(given.paths)))
    except ImportError:
        fail("dashboards need wandb-workspaces: pip install 'kdbench[dashboards]'", 1)
    except KdbenchError as error:
        fail(str(error), error.exit_code)
    try:
        for view in made:
            view.save()
            print(view.url)
    except Exception as error:  # W&B raises many types
        line = " ".join(str(error).split())
        fail(f"Weights & Biases did not save ({line}): check `wandb login` and the network", 1)


if __name__ == "__main__":
    main()
