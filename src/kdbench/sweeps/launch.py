"""A sweep from its configurations to its summary (`hydra/launcher=cohort`)."""

import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from kdbench.assembly.make import make
from kdbench.config.hydra_cli import print_error
from kdbench.errors import ConfigError, KdbenchError
from kdbench.parallel.torchrun import place
from kdbench.records.identity import canonical
from kdbench.records.settings import TrainSettings
from kdbench.sweeps.budget import Budget
from kdbench.sweeps.campaign import recorded_runs, told
from kdbench.sweeps.local import Executor, LocalExecutor, environments
from kdbench.sweeps.planning import Failure, Plan, plan, runs, teachers_first
from kdbench.sweeps.ray import RayExecutor
from kdbench.sweeps.running import Sweep
from kdbench.sweeps.settings import Settings
from kdbench.sweeps.slurm import SubmititExecutor
from kdbench.sweeps.worth import Worth, as_given
from kdbench.system.console import Console, duration
from kdbench.system.files import check_kept, make_folder, own_folder
from kdbench.system.private import private_folder
from kdbench.system.runtime import Runtime
from kdbench.system.signals import stop_requests
from kdbench.training.jobs import Job


def launch(configs: Sequence[TrainSettings], settings: Settings) -> None:
    """Train the runs that have no result yet, side by side where possible.

    A run or a process that fails is tried once more at the end; the others go on, unless
    `settings.fail_fast` is set.

    Raises:
        ConfigError: torchrun has started this process, but a sweep starts its own.
        KdbenchError: runs have no result; each was named, with its reason.
        KeyboardInterrupt: on Ctrl-C or SIGTERM; the runs can be resumed.
    """
    refuse_torchrun()
    started, console = time.monotonic(), Console()
    budget = None if settings.minutes is None else Budget(settings.minutes, console)
    runs_dir = Path(configs[0].runs_dir)
    make_folder(runs_dir)
    recorded = recorded_runs(configs, runs_dir, console) if settings.is_campaign else set()
    executor = open_executor(configs, settings, runs_dir, sys.stdout.isatty())
    with stop_requests() as stop, closing(executor):
        given = executor, console, stop, settings.size, settings.fail_fast
        sweep = Sweep(*given, limit=budget, shared=settings.is_campaign)
        late = train_teachers(sweep, configs)
        late = [] if budget is None else late
        ready = [one for one in configs if not (late or sweep.held) or not teachers_first([one])]
        planned = plan(ready, recorded)
        console.message(planned.describe())
        report(planned.failures)
        todo = [] if settings.fail_fast and planned.failures else planned.todo
        worth = Worth(configs, settings.headline)
        done = sweep.train(todo, worth.stages if settings.order == "value" else as_given)
    late += sweep.late
    if budget is not None and late and not sweep.started:
        budget.check(late)
    failed = [*planned.failures, *sweep.failures]
    seconds = time.monotonic() - started
    if not settings.is_campaign:
        close(planned, done, failed, console, seconds)
        return
    for line in told(sweep, planned, done, seconds, budget, late, len(configs) - len(ready)):
        console.message(line)
    if failed:
        report(failed if done or sweep.failures else [])  # otherwise they have just been reported
        raise no_result(len(failed), len(configs))


def refuse_torchrun() -> None:
    """Refuse a sweep within torchrun.

    Raises:
        ConfigError: torchrun has started this process.
    """
    if place().count > 1:
        raise ConfigError(
            "a sweep starts its own processes: run it without torchrun, or with "
            "hydra/launcher=basic to train its runs one after the other on all ranks"
        )


def train_teachers(sweep: Sweep, configs: Sequence[TrainSettings]) -> list[Job]:
    """Train the teachers that are to be trained first; return those that there is no time for."""
    first = plan(teachers_first(configs))
    if not first.todo:
        return []
    sweep.console.message(f"teachers first: {first.describe()}")
    sweep.train(first.todo)
    late = sweep.late
    sweep.failures.clear()  # these failures are reported as those of the other runs
    return late


def open_executor(
    configs: Sequence[TrainSettings], settings: Settings, runs_dir: Path, terminal: bool
) -> Executor:
    """Make the executor that the settings name.

    Raises:
        KdbenchError: its package is not installed, or the runs' device is missing.
    """
    if settings.executor == "submitit":
        # The folder's name cannot be foreseen, since submitit unpickles the results in it.
        for parent in runs_dir.resolve().parents:
            check_kept(parent)
        folder = own_folder(private_folder(runs_dir, ".submitit") / secrets.token_hex(4), 0o700)
        return SubmititExecutor(folder, settings.submitit, settings.processes)
    nodes = {canonical(config.runtime.spelt()): config.runtime for config in configs}
    if settings.executor == "ray":
        needs_gpu = any(node.settings["device"] != "cpu" for node in nodes.values())
        threads = max(node.settings["threads"] or 1 for node in nodes.values())
        return RayExecutor(settings.ray, needs_gpu, threads, settings.processes)
    runtimes: list[Runtime] = [make(node, "runtime") for node in nodes.values()]
    places = environments(runtimes, settings.processes)
    return LocalExecutor(
        private_folder(runs_dir, ".sweeps"), places, shown=terminal and len(places) == 1
    )


def report(failures: Sequence[Failure]) -> None:
    """Print a line for each reason of failure, with its runs."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in failures:
        by_reason.setdefault(reason, []).append(name)
    for reason, failed in by_reason.items():
        print_error(f"{', '.join(failed)}: {reason}")


def close(
    planned: Plan, done: int, failed: Sequence[Failure], console: Console, seconds: float
) -> None:
    """Print the summary.

    Raises:
        KdbenchError: runs have no result.
    """
    missing = planned.total - planned.done - done
    halted = f", {missing - len(failed)} not tried" if missing > len(failed) else ""
    console.message(
        f"sweep: {done} done, {planned.done} done before, {len(failed)} failed{halted}; "
        f"{duration(seconds)}"
    )
    if missing:
        report(failed if done or len(failed) > len(planned.failures) else [])  # else just reported
        raise no_result(missing, planned.total)


def no_result(missing: int, total: int) -> KdbenchError:
    """Return the error for runs without a result, each of which was named."""
    return KdbenchError(
        f"{missing} of {runs(total)} have no result; the same command tries them again "
        "and leaves the others alone"
    )
