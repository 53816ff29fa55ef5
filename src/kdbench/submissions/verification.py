"""What a bundle says, held against itself and against its weights' score on the test set."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from kdbench.assembly.evaluation import Scores, evaluate
from kdbench.assembly.finished import Shelf, Source, build_finished
from kdbench.assembly.make import make
from kdbench.config.conf_files import conf_dir
from kdbench.config.hydra_cli import compose_group
from kdbench.data.base import Dataset
from kdbench.errors import KdbenchError, nearest
from kdbench.ledger.verified import Verified
from kdbench.records.contents import ClassifierRecord, Record
from kdbench.records.identity import WHERE, digest, teacher_label, with_present_paths
from kdbench.records.passport import (
    TOLERANCE,
    Passport,
    beside,
    check_top1,
    read_passport,
    sha256_of,
)
from kdbench.records.protocol import protocol_of
from kdbench.records.record import RECORD_FILE, read_record
from kdbench.records.settings import TeacherSettings, TrainSettings
from kdbench.records.weights import STUDENT_FILE
from kdbench.schema.node import Node
from kdbench.submissions.bundle import opened
from kdbench.system.files import read_small
from kdbench.system.runtime import Runtime
from kdbench.tasks.classification.task import Classification, scores_of_rows
from kdbench.tracking.run_logger import METRICS_FILE, rows_of

# Points by which a score under another arithmetic may lie beside that in fp32, which is measured.
OTHER_ARITHMETIC = 0.5
LOSS = 0.02  # nats, the same of the test loss
DECIMALS = 1e-4  # a record's curve is rounded to these


class Verifier:
    """Verifies bundles, with the data sets and the device of this machine.

    Args:
        root: the folder of the data sets; None: where conf looks for them.
        teachers: the sha256 of the weights that may have taught, and their top-1 where it is known.
    """

    def __init__(self, root: str | None, teachers: Mapping[str, float | None]) -> None:
        self.root, self.teachers = root, dict(teachers)
        self.shelf = Shelf()
        self.runtime: Runtime = make(Node.read(compose_group("runtime", "auto")), "runtime")
        self.runtime.apply()

    def verify(self, bundle: Path) -> Verified:
        """Verify a bundle.

        Its record is held against its configuration (name, hash, protocol, teachers), its curve and
        its weights; these are scored again on all test images.

        Raises:
            KdbenchError: it is refused; the line says why.
        """
        with opened(bundle) as (folder, said):
            try:
                record = read_record(folder / RECORD_FILE)
                scores = self._check(record, folder)
                content = read_small(folder / RECORD_FILE)
            except KdbenchError as error:  # the folder is gone when the line is read
                raise KdbenchError(str(error).replace(f"{folder}/", "")) from None
        assert isinstance(record, ClassifierRecord)
        if record.student_sha256 is not None:
            self.teachers[record.student_sha256] = scores.top1  # of the bundles that follow
        return Verified(record, content, said.by, scores.top1, scores.n)

    def _check(self, record: Record, folder: Path) -> Scores:
        if not isinstance(record, ClassifierRecord):
            raise KdbenchError(f"{record.run_id} is no finished run of a classifier")
        check_identity(record)
        self._check_teachers(record)
        check_curve(record, folder)
        source = self._source(record, folder)
        dataset = self.shelf.dataset(source)
        scores = self._score(source, dataset)
        check_scores(record, source.passport, scores)
        return scores

    def _check_teachers(self, record: ClassifierRecord) -> None:
        for teacher in record.teachers:
            if teacher.sha256 not in self.teachers:
                raise KdbenchError(
                    f"{record.run_id} was taught by a {teacher.name} that nobody knows (sha256 "
                    f"{teacher.sha256[:12]}...): give the bundle of the teacher's own run before it"
                )
            known = self.teachers[teacher.sha256]
            if None not in (known, teacher.score) and not _near(known, teacher.score, TOLERANCE):
                raise KdbenchError(
                    f"{record.run_id} says that its teacher {teacher.name} scores "
                    f"{teacher.score:.2f}; these weights score {known:.2f}"
                )

    def _source(self, record: ClassifierRecord, folder: Path) -> Source:
        path = folder / STUDENT_FILE
        passport, sha256 = read_passport(beside(path)), sha256_of(path)
        for whose, stated in (("record", record.student_sha256), ("passport", passport.sha256)):
            if stated != sha256:
                raise KdbenchError(
                    f"{record.run_id}: these are not the weights of its {whose} (sha256 "
                    f"{sha256[:12]}..., it says {str(stated)[:12]}...)"
                )
        config = self._config(record)
        if passport.network != config.student.name or passport.top1 is None:
            raise KdbenchError(
                f"{record.run_id}: its passport is of a {passport.network} with top-1 "
                f"{passport.top1}, its record of a {config.student.name}"
            )
        facts = config.student, config.dataset, passport, config, record
        return Source(record.run_id, path, *facts)

    def _config(self, record: ClassifierRecord) -> TrainSettings:
        """Return the configuration of a record for the code and the data of this machine."""
        told = with_present_paths(record.config.spelt())
        name, known = (
            record.config.dataset.name,
            sorted(p.stem for p in conf_dir().glob("dataset/*.yaml")),
        )
        if name not in known:
            raise KdbenchError(f"{record.run_id} is of the data set {name}: {nearest(name, known)}")
        usual = compose_group("dataset", name)
        where = {key: usual[key] for key in WHERE if key in usual}
        if self.root is not None and "root" in where:
            where["root"] = self.root
        teachers = {
            key: TeacherSettings(Node.read(one["network"]), None, None)
            for key, one in told["teacher"].items()
        }
        return TrainSettings(
            method=Node.read(told["method"]),
            teacher=teachers,
            student=Node.read(told["student"]),
            dataset=Node.read({**told["dataset"], **where}),
            schedule=Node.read(told["schedule"]),
            runtime=Node("", {}),
            logger=Node("", {}),
            seed=record.seed,
            runs_dir="",
        )

    def _score(self, source: Source, dataset: Dataset) -> Scores:
        network, _ = build_finished(source, dataset)
        device, memory_format = self.runtime.device, self.runtime.memory_format
        network.to(device).to(memory_format=memory_format)
        return evaluate(network, dataset.test, dataset, device, memory_format)


def check_identity(record: ClassifierRecord) -> None:
    """Hold a record's names against its configuration.

    Raises:
        KdbenchError: one is of another configuration.
    """
    config = record.config
    labels = [teacher_label(key, one.network) for key, one in config.teacher.items()]
    names = [record.data.name, "+".join(labels) or "none", config.student.name, config.method.name]
    named = [teacher.name for teacher in record.teachers]
    taught = dict(zip(config.teacher, (one.sha256 for one in record.teachers), strict=False))
    wanted: dict[str, tuple[object, object]] = {
        "teachers": (named, labels),
        "data": (record.data.name, config.dataset.name),
        "cell": (record.cell, "-".join(names).replace("/", "_")),
        "seed": (record.seed, config.seed),
        "protocol": (record.protocol, protocol_of(config.dataset, config.schedule)),
        "epochs": (record.epochs, config.schedule.settings["epochs"]),
    }
    if named == labels:
        wanted["hash"] = record.hash, digest(config, record.data.sha256, taught)
    for key, (stated, follows) in wanted.items():
        if stated != follows:
            raise KdbenchError(
                f"{record.run_id}: its {key} is {stated}, its configuration gives {follows}"
            )


def check_curve(record: ClassifierRecord, folder: Path) -> None:
    """Hold a record's scores against its curve, and the curve against the rows of its epochs.

    Raises:
        KdbenchError: they are not of one run.
    """
    content = (folder / METRICS_FILE).read_bytes()
    if hashlib.sha256(content).hexdigest() != record.metrics_sha256:
        raise KdbenchError(f"{record.run_id}: {METRICS_FILE} is not the file of its record")
    rows = rows_of(content)
    if [row.get("epoch") for row in rows] != list(range(1, record.epochs + 1)):
        raise KdbenchError(
            f"{record.run_id}: {METRICS_FILE} has not the epochs 1 to {record.epochs}"
        )
    curve = record.curve or {}
    for key in Classification.curve:
        line = curve.get(key, [])
        same = len(line) == len(rows) and all(
            _near(row.get(key), value, DECIMALS) for row, value in zip(rows, line, strict=True)
        )
        if not same:
            raise KdbenchError(f"{record.run_id}: its curve of {key} is not that of {METRICS_FILE}")
    try:
        follows = scores_of_rows(rows)
    except KeyError as error:
        raise KdbenchError(f"{record.run_id}: {METRICS_FILE} has no {error}") from None
    for key, value in follows.items():
        stated = getattr(record, key)
        if stated != value and not _near(stated, value, DECIMALS):
            raise KdbenchError(f"{record.run_id}: its {key} is {stated}, its curve says {value}")


def check_scores(record: ClassifierRecord, passport: Passport, scores: Scores) -> None:
    """Hold a record's and a passport's scores against those that the weights have here.

    Raises:
        KdbenchError: they differ by more than hardware and arithmetic explain.
    """
    check_top1(f"{record.run_id}: its student", passport, scores.top1, scores.n)
    plain = record.config.schedule.settings.get("precision", "fp32") == "fp32"
    points = max(TOLERANCE if plain else OTHER_ARITHMETIC, 100 / scores.n + 1e-9)
    for key, measured, room in (
        ("top1_last", scores.top1, points),
        ("top5_last", scores.top5, points),
        ("loss_last", scores.loss, LOSS if plain else 5 * LOSS),
    ):
        stated = getattr(record, key)
        if not _near(stated, measured, room):
            raise KdbenchError(
                f"{record.run_id}: its {key} is {stated}, its weights score {measured:.4f} here"
            )


def _near(one: float | None, other: float | None, room: float) -> bool:
    return one is not None and other is not None and abs(one - other) <= room
