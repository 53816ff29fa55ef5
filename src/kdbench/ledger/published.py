"""Reading of published scores, `results/published.csv`, and the choice among them.

Every row is one number of one source. The column `method` is the source's label, `kdbench` our name
where the label clearly means one of our configurations; docs/results.md describes the others.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.records.task_kinds import TASKS

FILE = Path("results/published.csv")  # in a checkout's root
PROTOCOLS = ("last", "best", "unknown")
METRICS = tuple(task.metric for task in TASKS.values())
COLUMNS: tuple[str, ...] = (
    "source",
    "dataset",
    "teacher",
    "student",
    "method",
    "kdbench",
    "metric",
    "score",
    "score_std",
)
COLUMNS += (
    "gain_over_kd",
    "top5",
    "epochs",
    "seeds_or_trials",
    "protocol",
    "quoted",
    "url",
    "note",
)

# A method's own sources come first, by source key. Without one, the order is numbers that are not
# quoted, from the sources in FIRST, then from any other, and single runs last.
OWN = {
    "RepDistiller": {"crd"},
    "mdistiller-DKD": {"dkd"},
    "DKD-paper": {"dkd"},
    "mdistiller-DOT": {"dot"},
    "ReviewKD": {"reviewkd"},
    "CTKD": {"ctkd"},
    "LSKD": {"ls_kd", "ls_dkd", "ls_ctkd", "ls_mlkd"},
    "DIST": {"dist"},
    "TTM": {"ttm", "wttm"},
    "ITRD": {"itrd"},
    "SimKD": {"simkd"},
    "WSLD": {"wsld"},
    "NKD": {"nkd"},
    "CAT-KD": {"cat_kd"},
    "ND": {"kd_pp"},
    "SDD": {"sdd"},
    "OFD": {"ofd"},
    "EA-KD": {"ea_kd", "ea_mlkd", "ea_ls_mlkd"},
    "Tf-KD": {"tfkd_self", "tfkd_reg"},
    "AT-repo": {"at"},
    "WKD": {"wkd_l", "wkd_f", "wkd_lf"},
    "LumiNet": {"luminet"},
    "DKL": {"ikl", "gkl"},
    "LDRLD": {"ldrld"},
    "CRLD": {"crld"},
    "SemCKD": {"semckd"},
    "FCFD": {"fcfd"},
}
FIRST = ("RepDistiller", "mdistiller-DKD", "DKD-paper", "LSKD", "TTM", "SDD", "ND", "NORM")
SINGLE_RUNS = ("KD-Zoo", "LSKD-log", "LSKD-reruns", "WSLD-reruns", "mdistiller-issues")
BASELINE = "KD"  # the label of the row over which a source's gain is computed


@dataclass(frozen=True)
class Published:
    """One published score."""

    dataset: str
    teacher: str  # "none" where the source trains without one
    student: str
    method: str  # kdbench's name, or ""
    label: str  # the source's name
    metric: str  # one of METRICS
    score: float | None  # percent; None where only a gain is published
    gain: float | None  # points over the source's own KD, where it does not list KD's score
    std: float | None
    epochs: int | None
    seeds: int | None
    protocol: str  # the scored epoch: one of PROTOCOLS
    source: str
    url: str
    note: str
    quoted: bool = False  # the source copies the number from another one


@dataclass(frozen=True)
class Claim:
    """A published gain over KD, in points, with its source."""

    gain: float
    source: str


def usual() -> Path | None:
    """Return the checkout's file, if the current folder is a checkout."""
    return FILE if FILE.is_file() else None


def read_published(path: Path) -> tuple[list[Published], list[str]]:
    """Read a file of published scores; return its rows, and a line for each bad row, left out.

    Raises:
        KdbenchError: the file does not exist, or is not a table of these columns.
    """
    rows, problems = [], []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise KdbenchError(f"{path} lacks the columns {', '.join(missing)}")
            for fields in reader:
                try:
                    rows.append(_row(fields))
                except ValueError as error:
                    said = " ".join(str(error).split())  # a cell may hold several lines
                    problems.append(f"{path}, line {reader.line_num}: left out, {said}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise KdbenchError(f"{path} cannot be read ({error}): name a CSV file") from None
    return rows, problems


def choose(rows: Iterable[Published], method: str) -> Published | None:
    """Choose a method's score among a pair's rows: its own paper's, else by order of sources."""
    scores = (row for row in rows if row.method == method and row.score is not None)
    return min(scores, key=_rank, default=None)


def trained_alone(rows: Iterable[Published], epochs: int) -> dict[tuple[str, str], Published]:
    """Return the chosen score of each network that is trained without a teacher.

    Args:
        rows: published scores.
        epochs: of the schedule that counts.

    Returns:
        The scores by data set and network.
    """
    groups: dict[tuple[str, str], list[Published]] = defaultdict(list)
    for row in rows:
        if row.teacher == "none" and row.epochs == epochs:
            groups[row.dataset, row.student].append(row)
    chosen = {place: choose(group, "ce") for place, group in groups.items()}
    return {place: row for place, row in chosen.items() if row is not None}


def claim(rows: Sequence[Published], method: str) -> Claim | None:
    """Return `method`'s gain over KD within one source, among a pair's rows of one schedule.

    It is its own paper's gain, or else that of the first source in order that lists both.
    """
    for row in sorted((row for row in rows if row.method == method), key=_rank):
        gain = _gain(row, rows)
        if gain is not None:
            return Claim(gain, row.source)
    return None


def _gain(row: Published, rows: Iterable[Published]) -> float | None:
    if row.gain is not None or row.score is None:
        return row.gain
    bases = [
        base
        for base in rows
        if base.source == row.source and base.label == BASELINE and base.score is not None
    ]
    # Of a source's two KD rows, the one with the method's protocol counts.
    base = min(bases, key=lambda base: base.protocol != row.protocol, default=None)
    return None if base is None or base.score is None else round(row.score - base.score, 4)


def _rank(row: Published) -> tuple[bool, bool, bool, int, str, str]:
    own = row.method in OWN.get(row.source, ())
    place = FIRST.index(row.source) if row.source in FIRST else len(FIRST)
    return not own, row.source in SINGLE_RUNS, row.quoted, place, row.source, row.note


def _row(fields: dict[str | None, str | None]) -> Published:
    if None in fields or None in fields.values():
        raise ValueError(f"it has not {len(COLUMNS)} cells")
    text = {name: str(fields[name]).strip() for name in COLUMNS}
    for name in ("source", "dataset", "teacher", "student", "method"):
        if not text[name]:
            raise ValueError(f"its {name} is missing")
    if odd := next((name for name in COLUMNS if not text[name].isprintable()), None):
        raise ValueError(f"its {odd} holds characters that cannot be printed")
    if not text["url"].startswith("https://"):
        raise ValueError("its url is missing: name a page that shows the number")
    if text["protocol"] not in PROTOCOLS:
        raise ValueError(f"its protocol is {text['protocol']!r}, not one of {', '.join(PROTOCOLS)}")
    if text["quoted"] not in ("", "yes"):
        raise ValueError(f"its quoted is {text['quoted']!r}, not yes or nothing")
    if text["metric"] not in METRICS:
        raise ValueError(f"its metric is {text['metric']!r}, not one of {', '.join(METRICS)}")
    score, gain = _percent(text, "score"), _points(text, "gain_over_kd")
    if score is None and gain is None:
        raise ValueError("its score is missing")
    _percent(text, "top5")
    return Published(
        dataset=text["dataset"],
        teacher=text["teacher"],
        student=text["student"],
        method=text["kdbench"],
        label=text["method"],
        metric=text["metric"],
        score=score,
        gain=gain,
        std=_percent(text, "score_std"),
        epochs=_count(text, "epochs"),
        seeds=_count(text, "seeds_or_trials"),
        protocol=text["protocol"],
        source=text["source"],
        url=text["url"],
        note=text["note"],
        quoted=text["quoted"] == "yes",
    )


def _percent(text: dict[str, str], name: str) -> float | None:
    return _number(text, name, 0, 100)


def _points(text: dict[str, str], name: str) -> float | None:
    return _number(text, name, -100, 100)


def _number(text: dict[str, str], name: str, least: float, most: float) -> float | None:
    if not text[name]:
        return None
    try:
        value = float(text[name])
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise ValueError(f"its {name} is {text[name]}, not a number from {least} to {most}")
    return value


def _count(text: dict[str, str], name: str) -> int | None:
    if not text[name]:
        return None
    if not text[name].isdigit() or int(text[name]) == 0:
        raise ValueError(f"its {name} is {text[name]}, not a whole number above 0")
    return int(text[name])
