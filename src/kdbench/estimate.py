"""An estimate of what a sweep costs on this machine, before anything starts.

    python -m kdbench.estimate +experiments=smoke_cifar100 teacher.resnet32.checkpoint=FILE

The arguments are those of `kdbench-train`; every job is composed, none is run. Totals come first,
then a line for each method, and with `--names` one for each run.
"""

import sys

from kdbench.config import hydra_cli
from kdbench.config.arguments import Parser
from kdbench.config.run_config import check_train
from kdbench.records.settings import TrainSettings


def progress(line: str) -> None:
    """Show the progress on standard error; on a terminal each line replaces the last."""
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"{line:<79}", end=end, file=sys.stderr, flush=True)


def main() -> None:
    """`kdbench-estimate`."""
    parser = Parser(
        prog="kdbench-estimate",
        description="What a sweep would cost on this machine: nothing is trained.",
        epilog="Totals come first, then a line for each method. The time of a step is that of a "
        "few real ones, of each distinct method once.",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="the command of kdbench-train"
    )
    parser.add_argument("--names", action="store_true", help="a line for each run, last")
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="taken for granted: it may be left out"
    )
    given = parser.parse_intermixed_args()

    def task(configs: list[TrainSettings]) -> None:
        from kdbench.sweeps.cost import estimate  # imports torch, once the command is understood

        estimate(configs, given.names, print, progress)

    sys.argv[1:] = given.overrides
    hydra_cli.run_together("config", check_train, task)


if __name__ == "__main__":
    main()
