"""A checkpoint's passport: its file's identity, its source and its expected score.

Dead links and silently wrong normalisation are this field's usual faults of teachers, so a teacher
is used only after its file is identified and its accuracy measured.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kdbench.errors import ConfigError, KdbenchError
from kdbench.schema.check import check_plain, convert
from kdbench.system.files import read_small, write_atomically

TOLERANCE = 0.1  # points of a score by which evaluation varies over hardware and libraries
SUFFIX = ".passport.json"
KNOWN = Path(__file__).resolve().parent / "passports"


@dataclass(frozen=True)
class Passport:
    """Facts about one checkpoint file; None where unknown."""

    sha256: str | None = None
    network: str | None = None
    dataset: str | None = None
    mean: tuple[float, ...] | None = None  # normalisation it was trained with
    std: tuple[float, ...] | None = None
    top1: float | None = None  # percent on the whole test set
    ap: float | None = None  # percent, COCO's AP of a detector
    source: str | None = None
    licence: str | None = None

    def stated(self) -> dict[str, Any]:
        """Return the facts that are known."""
        return {key: value for key, value in vars(self).items() if value is not None}

    def filled_from(self, other: "Passport") -> "Passport":
        """Return this passport with its unknown facts taken from `other`."""
        return dataclasses.replace(other, **self.stated())


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def beside(checkpoint: Path) -> Path:
    """Return the path of a checkpoint's own passport."""
    return checkpoint.with_name(checkpoint.stem + SUFFIX)


def read_passport(path: Path) -> Passport:
    """Read a passport file.

    Raises:
        KdbenchError: the file is not a JSON object of a passport's fields.
    """
    try:
        fields = json.loads(read_small(path))
        hints = Passport.__annotations__
        check_plain("", fields)  # records copy them
        return Passport(**{key: convert(key, value, hints[key]) for key, value in fields.items()})
    except (ValueError, KeyError, AttributeError, RecursionError, ConfigError) as error:
        raise KdbenchError(f"{path} is not a passport ({error}): mend it or remove it") from None


def write_passport(passport: Passport, path: Path) -> None:
    """Write a passport file, with a line for each fact."""
    text = json.dumps(dataclasses.asdict(passport), indent=1) + "\n"
    write_atomically(path, text.encode())


def find_passport(checkpoint: Path, sha256: str) -> Passport:
    """Return a file's passport: the one beside it, else that of kdbench's list of known files."""
    own = beside(checkpoint)
    if own.is_file():
        return read_passport(own)
    for path in sorted(KNOWN.glob(f"*{SUFFIX}")):
        known = read_passport(path)
        if known.sha256 == sha256:
            return known
    return Passport()


def identified(path: Path, stated: Passport) -> Passport:
    """Return the passport of a weight file with the file's own sha256.

    Args:
        path: the file.
        stated: what the user says of it, before its own passport.

    Raises:
        KdbenchError: it is not the file of its passport.
    """
    sha256 = sha256_of(path)
    passport = stated.filled_from(find_passport(path, sha256))
    if passport.sha256 not in (None, sha256):
        raise KdbenchError(
            f"{path} is not the file of its passport: sha256 {sha256[:12]}..., expected "
            f"{passport.sha256[:12]}...; fetch it again"
        )
    return dataclasses.replace(passport, sha256=sha256)


class Normalised(Protocol):
    """The facts of a data set that a passport is checked against."""

    @property
    def name(self) -> str:
        """The data set's."""

    @property
    def mean(self) -> tuple[float, ...]:
        """The numbers of the channels."""

    @property
    def std(self) -> tuple[float, ...]:
        """The numbers of the channels."""


def check_data(what: str, passport: Passport, dataset: Normalised) -> None:
    """Check a passport against the data set that its network is used on.

    Raises:
        KdbenchError: they disagree; `what` begins the line.
    """
    if passport.dataset not in (None, dataset.name):
        raise KdbenchError(
            f"{what} was trained on {passport.dataset}, not on {dataset.name}: choose another one "
            f"or dataset={passport.dataset}"
        )
    for key in ("mean", "std"):
        stated, used = getattr(passport, key), getattr(dataset, key)
        if stated is not None and tuple(stated) != tuple(used):
            wanted = f"[{','.join(map(str, stated))}]"
            raise KdbenchError(
                f"{what} was trained with another normalisation than the data set's: set "
                f"dataset.{key}={wanted}"
            )


def check_top1(what: str, passport: Passport, top1: float, n: int) -> None:
    """Check a measured top-1 in percent, on `n` images, against a passport that states one.

    Raises:
        KdbenchError: they differ by more than `TOLERANCE`, or one image of a small test set;
            `what` begins the line.
    """
    expected = passport.top1
    if expected is not None and abs(top1 - expected) > max(TOLERANCE, 100 / n) + 1e-9:
        raise KdbenchError(
            f"{what} scores {top1:.2f}, its passport says {expected:.2f}: wrong file, data or "
            "normalisation"
        )
