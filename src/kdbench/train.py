"""The entry: one command is one run, found again by the same command.

    python -m kdbench.train method=kd teacher=resnet32 teacher.resnet32.checkpoint=FILE \
        student=resnet8 dataset=cifar100 seed=0
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdbench import cli
from kdbench.build import build_method, build_student, check_teachers, make, set_up
from kdbench.checkpoint import checkpoint_paths
from kdbench.config import Config, check_train
from kdbench.console import Console
from kdbench.data.base import Dataset
from kdbench.errors import KdbenchError
from kdbench.hardware import hardware, versions
from kdbench.log import MetricsFile, RunLogger
from kdbench.loop import DivergedError, Run, Trainer
from kdbench.optim import Schedule
from kdbench.passport import Passport, beside, sha256_of, write_passport
from kdbench.record import (
    FORMAT,
    RECORD_FILE,
    Identity,
    Record,
    code_version,
    identify,
    read_record,
    recorded,
    teacher_label,
    write_record,
)
from kdbench.runtime import Runtime
from kdbench.snapshot import Position
from kdbench.teachers import Teacher, TeacherFile, find_teacher, load_teacher
from kdbench.weights import STUDENT_FILE, save_weights


TEACHER_SEED = 1000  # of teachers trained on the way; students of a table have small seeds


def train(config: Config) -> Path:
    """Train, resume or recognise as done the run that `config` describes; returns its folder.

    Raises:
        KdbenchError: something is wrong that the user can mend.
    """
    console = Console()
    runs_dir = Path(config["runs_dir"])
    make_folder(runs_dir)
    runtime: Runtime = make(config["runtime"])
    runtime.apply()
    schedule: Schedule = make(config["schedule"])
    method = build_method(config["method"], config["seed"])
    if method.num_teachers == 0:
        config = {**config, "teacher": {}}  # a run that reads no teacher is the same beside any
    check_teachers(config["method"], method, list(config["teacher"]))
    config = {**config, "teacher": with_trained_teachers(config)}
    files = [find_teacher(name, node, runs_dir) for name, node in config["teacher"].items()]
    dataset: Dataset = make(config["dataset"])
    identity = identify(
        config,
        dataset.name,
        dataset.fingerprint,
        {file.name: str(file.passport.sha256) for file in files},
    )
    folder = runs_dir / identity.run_id
    if (folder / RECORD_FILE).is_file():
        record = read_record(folder / RECORD_FILE)
        if record["status"] == "done":
            console.message(f"{identity.run_id} is done: {summary(record)}")
            return folder
    teachers = [load_teacher(file, dataset, runtime, runs_dir, console.message) for file in files]
    networks = {file.name: t.network for file, t in zip(files, teachers, strict=True)}
    student = build_student(config["student"], dataset, config["seed"])
    student = set_up(method, student, networks, dataset, config["seed"])
    run = Run(
        run_id=identity.run_id,
        seed=config["seed"],
        student=student,
        method=method,
        teachers=list(networks.values()),
        dataset=dataset,
        schedule=schedule,
        runtime=runtime,
        folder=folder,
    )
    facts = describe(config, identity, dataset, runtime)
    facts["teachers"] = [teacher_facts(*pair) for pair in zip(files, teachers, strict=True)]
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    logger: RunLogger = make(config["logger"])
    logger.open(identity, config, folder)
    record = execute(run, facts, console, logger)
    console.message(f"{identity.run_id}: {summary(record)}; files in {folder}")
    return folder


def with_trained_teachers(config: Config) -> dict[str, Any]:
    """The run's teachers; one whose checkpoint is "train" is trained first, or found trained.

    It learns from labels alone by the run's own recipe, with a seed that is the same for all
    students: they share one teacher, and none starts from its first weights.
    """
    teachers = dict(config["teacher"])
    for name, node in teachers.items():
        if node["checkpoint"] == "train":
            method = {"_target_": "kdbench.methods.ce.CE", "name": "ce"}
            alone = {"method": method, "teacher": {}, "student": node["network"]}
            folder = train({**config, **alone, "seed": TEACHER_SEED})
            teachers[name] = {**node, "checkpoint": str(folder)}
    return teachers


def execute(run: Run, facts: Record, console: Console, logger: RunLogger) -> Record:
    """Train the run to its end and write its record; returns it.

    Raises:
        DivergedError: it diverged; the record says "failed".
    """
    exit_code = 1
    try:
        position = Trainer(run, console, [MetricsFile(run.folder), logger]).train()
        record = finish(run, facts, position)
        exit_code = 0
    except DivergedError as error:
        write_record({**facts, "status": "failed", "error": str(error)}, run.folder / RECORD_FILE)
        raise
    finally:
        logger.finish(exit_code)
    return record


def make_folder(folder: Path) -> None:
    """Make the folder of runs, before anything else takes time.

    Raises:
        KdbenchError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise KdbenchError(
            f"cannot write to {folder} ({error.strerror}): set runs_dir=DIR to a folder that can "
            "be written"
        ) from None


def describe(config: Config, identity: Identity, dataset: Dataset, runtime: Runtime) -> Record:
    """What a record says of a run before its results."""
    return {
        "format": FORMAT,
        "run_id": identity.run_id,
        "cell": identity.cell,
        "hash": identity.hash,
        "seed": identity.seed,
        "config": recorded(config),
        "data": {
            "name": dataset.name,
            "sha256": dataset.fingerprint,
            "train": len(dataset.train.labels),
            "test": len(dataset.test.labels),
        },
        "commit": code_version(),
        "versions": versions(),
        "hardware": hardware(runtime.device),
    }


def teacher_facts(file: TeacherFile, teacher: Teacher) -> dict[str, Any]:
    """A teacher's line in a record."""
    passport = file.passport
    return {
        "name": teacher_label(file.name, {"network": file.node}),
        "sha256": passport.sha256,
        "top1": teacher.top1,
        "passport_top1": passport.top1,
        "source": passport.source,
    }


def finish(run: Run, facts: Record, position: Position) -> Record:
    """Write the student with its passport, then the record; "done" is written last."""
    last = position.history[-1]
    best = max(position.history, key=lambda row: row["test/top1"])
    weights = run.folder / STUDENT_FILE
    save_weights(run.student, weights)
    passport = Passport(
        sha256=sha256_of(weights),
        network=facts["config"]["student"]["name"],
        dataset=run.dataset.name,
        mean=run.dataset.mean,
        std=run.dataset.std,
        top1=last["test/top1"],
        source=f"kdbench run {run.run_id}",
    )
    write_passport(passport, beside(weights))
    record: Record = {
        **facts,
        "status": "done",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(position.seconds, 1),
        "epochs": len(position.history),
        "top1_last": last["test/top1"],
        "top1_best_on_test": best["test/top1"],
        "epoch_best_on_test": best["epoch"],
        "top5_last": last["test/top5"],
        "loss_last": last["test/loss"],
        "student_sha256": passport.sha256,
        "curve": {
            key: [round(row[key], 4) for row in position.history]
            for key in ("train/loss", "train/top1", "test/top1")
        },
    }
    if run.dataset.val is not None:
        record["top1_val_last"] = last["val/top1"]
    write_record(record, run.folder / RECORD_FILE)
    for path in checkpoint_paths(run.folder):
        path.unlink()
    return record


def summary(record: Record) -> str:
    """A record's result in a few words."""
    return (
        f"top-1 {record['top1_last']:.2f} after epoch {record['epochs']}, {record['seconds']:.0f} s"
    )


def main() -> None:
    """`kdbench-train`."""
    cli.run("config", check_train, train)


if __name__ == "__main__":
    main()
