"""The mirror of a run in Weights & Biases: config, history, summary, and teacher lineage."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any, NamedTuple

import wandb

from kdbench.errors import KdbenchError
from kdbench.records.contents import Record, RecordedSettings
from kdbench.records.identity import Identity, recorded
from kdbench.records.passport import beside, read_passport, sha256_of
from kdbench.records.protocol import protocol_of
from kdbench.records.settings import TrainSettings
from kdbench.records.task_kinds import TASKS
from kdbench.records.weights import STUDENT_FILE
from kdbench.schema.secrets import masked_node
from kdbench.system.console import Console
from kdbench.system.private import user_folder
from kdbench.tracking.run_logger import RunLogger
from kdbench.tracking.wandb_facts import MADE, pair_of, summary, teacher_files
from kdbench.tracking.wandb_names import NAME_LENGTH, Mode, folder_of, mode_of, place_of, safe

TAG_LENGTH = 64  # the longest tag that W&B takes
# W&B raises these when its service has ended, besides errors of the connection.
LOST = ("HandleAbandonedError", "MailboxClosedError")


class UnreachableError(KdbenchError):
    """Weights & Biases cannot start a run."""


class Target(NamedTuple):
    """The W&B project, mode and folder to which runs are sent."""

    project: str
    entity: str | None  # user or team; the one of the login where None
    mode: Mode  # offline: a file below `folder`
    folder: Path  # W&B's files go below its `wandb/`

    def start(self, run_id: str, live: bool, **facts: Any) -> wandb.Run:
        """Start a W&B run.

        Args:
            run_id: its name and, made safe, its id; W&B replaces a run of the same id.
            live: it trains now, so that W&B's statistics of this machine are about it.
            facts: further arguments of `wandb.init`.

        Raises:
            UnreachableError: W&B cannot start it.
        """
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,  # git runs programs that a repository's settings name
            x_disable_stats=not live,
            x_disable_meta=True,  # metadata has the command, which may hold a password
        )
        place: dict[str, Any] = {"project": self.project, "entity": self.entity, "mode": self.mode}
        # W&B's service has a working directory of its own, so relative paths would be wrong.
        names: dict[str, Any] = {"id": safe(run_id), "name": run_id[:NAME_LENGTH]}
        names["dir"] = self.folder.resolve()
        if (self.folder / "wandb").is_symlink():
            raise UnreachableError(f"{self.folder / 'wandb'} is a link: remove it")
        try:
            read_own_settings()
            return wandb.init(**place, **names, **facts, reinit="create_new", settings=settings)
        except Exception as error:
            raise UnreachableError(
                f"Weights & Biases starts no run ({describe(error)}): check `wandb login` and the "
                "network, or use mode offline"
            ) from error


def read_own_settings() -> None:
    """Let W&B read this user's settings, but not those in the current folder.

    The latter could name a server to which W&B would send the user's key.
    """
    with chdir(user_folder("XDG_STATE_HOME", ".local/state")):
        wandb.setup(wandb.Settings(silent=True))


class Mirror:
    """One run in Weights & Biases, under the run's own id; W&B's errors are passed on.

    Args:
        target: the W&B project.
        identity: names the run; its cell is the group.
        config: the configuration as the run's record keeps it.
        live: the run trains now.
    """

    def __init__(
        self, target: Target, identity: Identity, config: RecordedSettings, live: bool
    ) -> None:
        pair, protocol = pair_of(config), protocol_of(config.dataset, config.schedule)
        names = config.dataset.name, pair, config.method.name, protocol
        self._mode = target.mode
        self._run = target.start(
            identity.run_id,
            live,
            group=safe(identity.cell),
            job_type="distil" if config.teacher else "train",
            tags=list(dict.fromkeys(name[:TAG_LENGTH] for name in names)),
            config={
                **masked_node(config.spelt()),
                "hash": identity.hash,
                "pair": pair,
                "protocol": protocol,
            },
        )
        task = TASKS[config.task]
        self._axis = task.length.removesuffix("s")  # epoch, or step
        self._run.define_metric(self._axis)
        self._run.define_metric("*", step_metric=self._axis)
        self._run.define_metric(task.headline, step_metric=self._axis, summary="last,max")

    def epoch(self, row: Mapping[str, float]) -> None:
        """Log one row; its epoch, or a detector's step, is W&B's step."""
        self._run.log(dict(row), step=int(row[self._axis]))

    def record(self, record: Record, folder: Path | None, checkpoints: Sequence[str]) -> None:
        """Log a record's facts, apart from its curve, and the lineage of the weights.

        Args:
            record: the record of a run that is done or has failed.
            folder: the run's folder, with its weights; None where there is none.
            checkpoints: the paths of its teachers' weights, from its configuration.
        """
        content = record.spelt()
        made = {key: content[key] for key in MADE}
        facts = {teacher["name"]: teacher for teacher in content["teachers"]}
        self._run.config.update(masked_node({**made, "teachers": facts}))
        self._run.summary.update(masked_node(summary(record)))
        if folder is None:
            return
        if self._mode == "online":  # W&B takes no inputs offline
            known = {teacher.sha256 for teacher in record.teachers}
            for teacher in teacher_files(checkpoints, folder.parent):
                if sha256_of(teacher) in known:  # a foreign configuration may name any file
                    self._run.use_artifact(model_artifact(teacher))
        weights = folder / STUDENT_FILE
        if weights.is_file() and sha256_of(weights) == content.get("student_sha256"):
            self._run.log_artifact(model_artifact(weights))

    def finish(self, exit_code: int) -> None:
        """Close the run; online, it waits until everything is sent."""
        self._run.finish(exit_code=exit_code)


class WandbLogger(RunLogger):
    """The logger of `logger=wandb`: one W&B run for each run, grouped by cell.

    It is offline by default: `wandb sync` sends the folder later. Settings that are not given come
    from W&B's own variables: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE and WANDB_DIR. A failure of
    W&B is reported once and never disturbs training; `kdbench-sync` sends the whole run afterwards.
    """

    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        mode: Mode | None = None,
    ) -> None:
        self._target = Target(*place_of(project, entity), mode_of(mode), Path())
        self._folder = Path()  # the run's
        self._mirror: Mirror | None = None
        self._name = ""
        self._checkpoints: list[str] = []  # its teachers'

    def open(self, identity: Identity, config: TrainSettings, folder: Path) -> None:
        """Start the W&B run under the run's own id."""
        self._folder, self._name = folder, identity.run_id
        named = [teacher.checkpoint for teacher in config.teacher.values()]
        self._checkpoints = [name for name in named if name is not None]
        if self._target.mode == "disabled":
            return
        self._target = self._target._replace(folder=folder_of(None, folder))
        try:
            self._mirror = Mirror(self._target, identity, recorded(config), live=True)
        except Exception as error:
            self._give_up(error)

    def start(self, history: Sequence[Mapping[str, float]]) -> None:
        """Log the finished epochs again, so that the history is complete after a resume."""
        for row in history:
            self.epoch(row)

    def epoch(self, row: Mapping[str, float]) -> None:
        """Log one epoch."""
        self._try(lambda mirror: mirror.epoch(row))

    def record(self, record: Record) -> None:
        """Log the results, the weights and their teachers."""
        self._try(lambda mirror: mirror.record(record, self._folder, self._checkpoints))

    def finish(self, exit_code: int) -> None:
        """Close the W&B run."""
        self._try(lambda mirror: mirror.finish(exit_code))
        self._mirror = None

    def _try(self, act: Callable[[Mirror], None]) -> None:
        if self._mirror is not None:
            try:
                act(self._mirror)
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._mirror = None
        if isinstance(error, ConnectionError) or type(error).__name__ in LOST:
            leave_service()
        Console().message(
            f"{self._name}: Weights & Biases failed, training goes on without it; kdbench-sync "
            f"sends the run later ({describe(error)})"
        )


def leave_service() -> None:
    """Leave W&B's service once it has died: the next run starts another.

    W&B itself would try to reach it again, and print a traceback when Python ends.
    """
    with suppress(Exception, SystemExit):  # raised, since the connection is lost
        wandb.teardown()


def log_table(
    target: Target, name: str, rows: Sequence[Mapping[str, Any]], totals: Mapping[str, Any]
) -> None:
    """Log a run that is one table, with totals as its summary.

    Args:
        target: the W&B project.
        name: the name of the run and of the table.
        rows: the table's rows, all with the same columns.
        totals: numbers over the rows.

    Raises:
        UnreachableError: W&B cannot start it.
    """
    run = target.start(name, live=False, job_type=name)
    try:
        data = [list(row.values()) for row in rows]
        run.log({name: wandb.Table(columns=list(rows[0]), data=data)})
        run.summary.update(dict(totals))
    finally:
        run.finish()


def describe(error: Exception) -> str:
    """Return an error in one line; W&B's own may have no text, or several lines."""
    return " ".join(f"{type(error).__name__} {error}".split())


def model_artifact(weights: Path) -> wandb.Artifact:
    """A weight file with its passport, under one name wherever it is made or used.

    W&B tells versions apart by content: a student that teaches later is the version that its own
    run has logged, which is how lineage reaches from run to run.
    """
    sha256, passport = sha256_of(weights), beside(weights)
    source = read_passport(passport).source if passport.is_file() else None
    ours = (source or "").startswith("kdbench run ")
    name = (source or "").removeprefix("kdbench run ") if ours else f"{weights.stem}-{sha256[:8]}"
    artifact = wandb.Artifact(
        safe(name, also=""), "model", metadata={"sha256": sha256, "source": source}
    )
    for path in (weights, passport) if passport.is_file() else (weights,):
        # Immutable: W&B reads the file where it lies when it sends, and makes no copy before.
        artifact.add_file(str(path.resolve()), name=path.name, policy="immutable", skip_cache=True)
    return artifact
