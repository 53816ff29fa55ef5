"""From what a user asks to an analysis' files: numbers, figures, and the page."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kdbench.analysis import (
    agreement,
    calibration,
    correlation,
    cost,
    embedding,
    entropy,
    robustness,
    similarity,
    transfer,
)
from kdbench.analysis.page import render, svg_of
from kdbench.analysis.result import Drawing, Result, Table, fixed, plain
from kdbench.analysis.subjects import Report, Subject, open_subjects
from kdbench.assembly.make import make
from kdbench.errors import KdbenchError
from kdbench.ledger.svg import alone, light, png, style
from kdbench.records.record import code_version, read_checked, write_checked
from kdbench.records.settings import AnalyseSettings
from kdbench.system.escapes import as_markdown
from kdbench.system.files import write_atomically
from kdbench.system.hardware import hardware, versions
from kdbench.system.runtime import Runtime

NUMBERS, PAGE = "analysis.json", "index.html"
Measure = Callable[[Sequence[Subject]], Result]


def measures(asked: AnalyseSettings) -> dict[str, Measure]:
    """Return the measures that can be asked for, by name."""
    return {
        "correlation": correlation.measure,
        "entropy": entropy.measure,
        "calibration": calibration.measure,
        "embedding": embedding.measure,
        "similarity": similarity.measure,
        "agreement": agreement.measure,
        "transfer": partial(transfer.measure, node=asked.transfer),
        "robustness": partial(robustness.measure, folder=asked.corrupted),
        "cost": cost.measure,
    }


def analyse(asked: AnalyseSettings, report: Report) -> list[Path]:
    """Measure and write; returns the files.

    Args:
        asked: the settings.
        report: is told what a user should see meanwhile.

    Raises:
        KdbenchError: something is wrong that the user can mend; no file is written then.
    """
    runtime: Runtime = make(asked.runtime, "runtime")
    runtime.apply()
    places = Path(asked.runs_dir), asked.dataset, asked.root, asked.teacher_file
    subjects = open_subjects(asked.runs, runtime, *places, report)
    results = {name: measures(asked)[name](subjects) for name in asked.what}
    out = Path(asked.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KdbenchError(f"cannot write to {out} ({error.strerror}): set out=DIR") from None
    return write(out, subjects, results, runtime)


def write(
    out: Path, subjects: Sequence[Subject], results: Mapping[str, Result], runtime: Runtime
) -> list[Path]:
    """Write figures, numbers and the page; returns the files."""
    files: list[Path] = []
    for result in results.values():
        for drawing in result.drawings:
            files += write_drawing(out, drawing)
        for folder, records in result.records.items():
            files += write_records(out / folder, records, runtime)
    data = data_facts(subjects[0])
    record = {
        "data": data,
        "networks": {one.name: facts_of(one) for one in subjects},
        "measures": {name: plain(result.numbers) for name, result in results.items()},
        **conditions(runtime),
    }
    write_checked(record, out / NUMBERS)
    what = f"{len(subjects)} networks on the {data['test']:,} test images of {data['name']}"
    words = "; ".join(f"{name} {version}" for name, version in versions().items())
    page = render(results, table_of(subjects), f"{what} (sha256 {data['sha256'][:12]}).", words)
    write_atomically(out / PAGE, page.encode())
    return [*files, out / NUMBERS, out / PAGE]


def conditions(runtime: Runtime) -> dict[str, Any]:
    """Return the commit, the versions and the hardware of this process."""
    where = hardware(runtime.device)
    return {"commit": code_version(), "versions": versions(), "hardware": where}


def write_records(
    folder: Path, records: Mapping[str, Mapping[str, Any]], runtime: Runtime
) -> list[Path]:
    """Write a file for each record, and FOLDER.md, the table of all records in the folder.

    Raises:
        KdbenchError: a record that was there is damaged.
    """
    folder.mkdir(exist_ok=True)
    files = [folder / f"{name}.json" for name in records]
    for path, record in zip(files, records.values(), strict=True):
        write_checked({**plain(dict(record)), **conditions(runtime)}, path)
    table = folder.with_name(f"{folder.name}.md")
    probes = [read_checked(path) for path in sorted(folder.glob("*.json"))]
    write_atomically(table, markdown(transfer.table_of(probes)).encode())
    return [*files, table]


def markdown(table: Table) -> str:
    """Format a table as Markdown."""
    rows = [[as_markdown(cell) for cell in row] for row in (table.heads, *table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    rule = "|" + "---|" * len(table.heads)
    return "\n".join([table.caption, "", lines[0], rule, *lines[1:]]) + "\n"


def write_drawing(out: Path, drawing: Drawing) -> list[Path]:
    """Write a figure as SVG, which follows the viewer's light or dark mode, and as PNG."""
    svg, raster = (out / f"{drawing.name}.{kind}" for kind in ("svg", "png"))
    write_atomically(svg, alone(svg_of(drawing, "")).encode())
    palette = light()
    with style(palette):
        write_atomically(raster, png(drawing.draw(palette), palette))
    return [svg, raster]


def data_facts(one: Subject) -> dict[str, Any]:
    """Return the facts of the data that are scored on."""
    data = one.dataset
    return {"name": data.name, "sha256": data.fingerprint, "test": len(data.test.labels)}


def facts_of(one: Subject) -> dict[str, Any]:
    """Return what identifies a network, and its score here."""
    source = one.source
    record = source.record
    teachers = () if record is None else record.teachers
    return {
        "name": source.name,
        "network": source.network.name,
        "method": source.method,
        "seed": source.seed,
        "sha256": source.sha256,
        "data": one.dataset.fingerprint,
        "protocol": None if record is None else record.protocol,
        "teachers": {teacher.name: teacher.sha256 for teacher in teachers},
        "compared_with": list(one.teachers),
        "top1": round(top1(one), 4),
    }


def top1(one: Subject) -> float:
    """Return the top-1 in percent."""
    return 100 * float((one.logits.argmax(axis=1) == one.labels).mean())


def table_of(subjects: Sequence[Subject]) -> Table:
    """Return the networks for people."""
    rows = [
        [one.name, one.source.name, one.taught_by, fixed(top1(one)), one.source.sha256[:12]]
        for one in subjects
    ]
    heads = ["network", "run or file", "compared with", "top-1, %", "sha256 of its weights"]
    return Table("Top-1 as measured for this page.", heads, rows)
