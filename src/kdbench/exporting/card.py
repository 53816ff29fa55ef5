"""The model card of a student: what it is, what it scores, and how it came to be, from its record.

Source of the form: the Hugging Face hub's model cards (metadata in YAML, then Markdown).
"""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from kdbench.assembly.finished import Source
from kdbench.data.base import Dataset
from kdbench.ledger.commands import commands
from kdbench.ledger.ledger import open_ledger, tables
from kdbench.ledger.significance import Estimate, estimate
from kdbench.records.contents import ClassifierRecord
from kdbench.records.record import RECORD_FILE, read_record
from kdbench.system.escapes import as_markdown as _m

UNSTATED = "not stated: whoever publishes the weights says it (export again with licence=...)"


def card(source: Source, dataset: Dataset, licence: str | None, top1: float, loading: str) -> str:
    """Return README.md of a folder for the hub.

    Args:
        source: the student.
        dataset: its data.
        licence: of the weights, as the hub spells it; None where nobody has said.
        top1: as measured on all test images, percent.
        loading: Python that loads it.
    """
    record = source.record
    name = source.name.replace("/", "_")
    data = ModelCardData(
        license=licence,
        library_name="kdbench",
        pipeline_tag="image-classification",
        datasets=[dataset.name],
        tags=["knowledge-distillation", "kdbench", *([str(source.method)] if record else [])],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset.name,
                dataset_name=dataset.name,
                dataset_split="test",
                metric_type="accuracy",
                metric_value=round(top1 / 100, 6),
                metric_name="top-1",
            )
        ],
    )
    sections = [
        f"# {_m(name)}",
        _summary(source, dataset),
        "## Score",
        _score(source, top1, len(dataset.test.labels)),
        "## Use",
        f"```python\n{loading}```",
        "## Origin",
        _origin(source, dataset, licence),
    ]
    if record is not None:
        sections += ["## Train it again", f"```\n{_command(source)}\n```"]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _summary(source: Source, dataset: Dataset) -> str:
    shape = " x ".join(map(str, dataset.test.images.shape[1:]))
    line = f"{_m(source.network.name)}, a classifier of {_m(dataset.name)} "
    line += f"({dataset.num_classes} classes, images of {shape})"
    if source.record is None:
        return f"{line}."
    teachers = [_m(one.name) for one in source.record.teachers]
    taught = f", taught by {' and '.join(teachers)}" if teachers else ", without a teacher"
    return f"{line}, trained with {_m(str(source.method))}{taught}."


def _score(source: Source, top1: float, n: int) -> str:
    lines = [f"Top-1 of these weights: {top1:.2f}% on {n:,} test images, at the last epoch."]
    found = seeds_of(source)
    if found is not None and found.std is not None:
        lines.append(
            f"Mean over {found.n} seeds of the same configuration: {found.mean:.2f} ± "
            f"{found.std:.2f} (sample standard deviation), 95% interval of the mean "
            f"{found.low:.2f} to {found.high:.2f} (Student's t)."
        )
    elif source.record is not None:
        lines.append("One seed: the spread between seeds, and so an interval, is not known.")
    return "\n".join(lines)


def seeds_of(source: Source) -> Estimate | None:
    """Return the scores of the seeds of a run's configuration that lie beside it; None: no run."""
    if source.record is None:
        return None
    beside = source.folder.parent.glob(f"{source.record.cell}-s*-{source.record.hash}")
    records = [read_record(path / RECORD_FILE) for path in sorted(beside) if _is_run(path)]
    return estimate([one.top1_last for one in records if isinstance(one, ClassifierRecord)])


def _is_run(folder: Path) -> bool:
    return (folder / RECORD_FILE).is_file()


def _origin(source: Source, dataset: Dataset, licence: str | None) -> str:
    record, own = source.record, source.network.settings
    rows: list[tuple[str, str]] = [
        ("weights", f"sha256 `{source.sha256}`"),
        ("licence of the weights", _m(licence) if licence else UNSTATED),
        ("data", f"{_m(dataset.name)}, sha256 `{dataset.fingerprint}`"),
        (
            "normalisation",
            f"mean {list(own.get('mean') or dataset.mean)}, std "
            f"{list(own.get('std') or dataset.std)} of pixels in 0 to 1",
        ),
    ]
    if record is not None:
        for one in record.teachers:
            measured = "" if one.score is None else f"{one.score:.2f}% here, "
            rows.append((f"teacher {_m(one.name)}", f"{measured}sha256 `{one.sha256}`"))
        versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
        rows += [
            ("method", _m(record.config.method.name)),
            ("seed", str(record.seed)),
            ("protocol", _m(record.protocol)),
            ("versions", _m(versions)),
            ("kdbench commit", str(record.commit)),
        ]
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])


def _command(source: Source) -> str:
    (table,) = (table for table in tables(open_ledger([source.folder], None)) if table.run)
    return commands(table).replace(" -m hydra/launcher=cohort", "")  # it is one run
