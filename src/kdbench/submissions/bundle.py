"""A finished run as one file that can be sent, and back.

The file is a zip archive that compresses nothing, so that it cannot grow when it is read. What is
in it is not trusted: it is copied out, bounded, under the names below, and read by the readers of
records, passports and weights, none of which runs code.
"""

import json
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from kdbench.assembly.finished import find_sources, is_checkpoint
from kdbench.errors import ConfigError, KdbenchError
from kdbench.records.passport import beside
from kdbench.records.record import RECORD_FILE
from kdbench.records.weights import STUDENT_FILE
from kdbench.schema.check import check_plain, convert
from kdbench.system.files import LARGEST, open_regular, read_small, write_atomically
from kdbench.system.hardware import versions
from kdbench.tracking.run_logger import METRICS_FILE

SUBMISSION_FILE = "submission.json"
PASSPORT_FILE = beside(Path(STUDENT_FILE)).name
WEIGHTS = 2**30  # bytes of a student at most
SIZES = {  # of each file, at most
    SUBMISSION_FILE: LARGEST,
    RECORD_FILE: LARGEST,
    METRICS_FILE: LARGEST,
    PASSPORT_FILE: LARGEST,
    STUDENT_FILE: WEIGHTS,
}
FORMAT = 1
NAME = 100  # letters of a submitter's name at most


@dataclass(frozen=True)
class Submission:
    """What a submitter says of a bundle."""

    format: int
    by: str  # who has computed the run
    environment: dict[str, str]  # in which the bundle was written

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ConfigError(
                f"format={self.format} is not {FORMAT}: use the version that wrote it"
            )
        if not 0 < len(self.by.strip()) <= NAME or not self.by.isprintable():
            raise ConfigError(f"by must be a name of 1 to {NAME} printable letters")


def write_bundle(name: str, by: str, runs_dir: Path, out: Path | None) -> Path:
    """Write the bundle of a finished run; return its path.

    Args:
        name: a run, as its folder or by its name.
        by: who has computed it, as the ledger shows it.
        runs_dir: where runs are looked for.
        out: the file to write; None: RUN.zip in the current folder.

    Raises:
        ConfigError: the name is several runs' or a checkpoint's, or `by` is no name.
        KdbenchError: there is no such run, it is not done, or one of its files is damaged.
    """
    if is_checkpoint(name):
        raise ConfigError(f"{name} is a checkpoint without a record: name a run")
    sources = find_sources([name], runs_dir, None, None)
    if len(sources) > 1:
        raise ConfigError(
            f"{name} is {len(sources)} runs: name one of {', '.join(s.name for s in sources)}"
        )
    (source,) = sources
    environment = {**versions(), "platform": platform.platform()}
    said = Submission(FORMAT, by, environment)
    folder, path = source.folder, out or Path(f"{source.name}.zip")
    for needed in (METRICS_FILE, PASSPORT_FILE):
        if not (folder / needed).is_file():
            raise KdbenchError(f"{folder / needed} is missing: restore it, or train the run again")
    try:
        with tempfile.TemporaryFile() as file:
            with ZipFile(file, "w", ZIP_STORED) as archive:
                archive.writestr(SUBMISSION_FILE, json.dumps(vars(said), indent=1) + "\n")
                for one in (RECORD_FILE, METRICS_FILE, PASSPORT_FILE, STUDENT_FILE):
                    archive.write(folder / one, one)
            file.seek(0)
            write_atomically(path, file.read())
    except OSError as error:
        raise KdbenchError(f"cannot write {path} ({error.strerror}): set --out FILE") from None
    return path


@contextmanager
def opened(path: Path) -> Iterator[tuple[Path, Submission]]:
    """Copy a bundle's files to a folder of their own for as long as they are needed.

    Raises:
        KdbenchError: it is no bundle, or holds anything but a bundle's files.
    """
    with tempfile.TemporaryDirectory(prefix="kdbench-bundle-") as name:
        folder = Path(name)
        try:
            with open_regular(path) as file:
                _copy(path, file, folder)
        except (OSError, ValueError, BadZipFile, NotImplementedError, RuntimeError) as error:
            raise KdbenchError(
                f"{path} cannot be read as a bundle ({error}): send it again"
            ) from None
        yield folder, _submission(folder / SUBMISSION_FILE)


def _copy(path: Path, file: IO[bytes], folder: Path) -> None:
    with ZipFile(file) as archive:
        entries = archive.infolist()
        found = sorted(entry.filename for entry in entries)
        if found != sorted(SIZES):
            odd = sorted({*found} ^ {*SIZES}) or sorted(
                {one for one in found if found.count(one) > 1}
            )
            raise KdbenchError(
                f"{path} is no bundle: {odd[0]!r} should not be there, is missing or is there twice"
            )
        for entry in entries:
            packed = entry.compress_type != ZIP_STORED or entry.compress_size != entry.file_size
            if packed or entry.file_size > SIZES[entry.filename]:
                raise KdbenchError(f"{path} is no bundle: {entry.filename} is packed or too large")
            with archive.open(entry) as source, (folder / entry.filename).open("xb") as target:
                shutil.copyfileobj(source, target)


def _submission(path: Path) -> Submission:
    hints = Submission.__annotations__
    try:
        fields: dict[str, Any] = json.loads(read_small(path))
        check_plain("", fields)
        return Submission(**{key: convert(key, value, hints[key]) for key, value in fields.items()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        raise KdbenchError(
            f"{SUBMISSION_FILE} is not what kdbench-submit writes ({error})"
        ) from None
