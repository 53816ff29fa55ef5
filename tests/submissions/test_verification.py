"""Bundles of runs: what is accepted, what is refused and why, and what the ledger then shows."""

import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.ledger.ledger import open_ledger
from kdbench.records.identity import digest
from kdbench.records.reading import record_of
from kdbench.records.record import checksum
from kdbench.submissions.teachers import known_teachers
from support.records import fail, make_record
from support.records import write as write_records
from support.runs import runs

Files = dict[str, bytes]
CE, KD, TEACHER = (
    "synthetic-none-resnet8-ce-s0",
    "synthetic-resnet14-resnet8-kd-s0",
    "-resnet14-ce-",
)


@pytest.fixture
def bundles(command, trained) -> Path:
    """Bundles of the small finished runs, by the run's name without its hash."""
    Path("sent").mkdir()
    for name, folder in runs().items():
        out = ["--out", f"sent/{name}.zip"]
        result = command("submit", str(folder), "--by", "A Lab", *out)
        assert result.code == 0, result.err
        assert result.out.startswith(f"sent/{name}.zip: ")
    return Path("sent")


def read(path: Path) -> Files:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, files: Files, **how) -> None:
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def sealed(record: dict) -> bytes:
    """A record's file with a checksum of its own: nobody needs a key to make one."""
    record = {key: value for key, value in record.items() if key != "checksum"}
    return json.dumps({**record, "checksum": checksum(record)}).encode()


def forge(path: Path, change: Callable[[Files, dict], None]) -> None:
    """Change a bundle's files and its record, as somebody would who knows how they are read."""
    files = read(path)
    record = json.loads(files["record.json"])
    change(files, record)
    files["record.json"] = sealed(record)
    write(path, files)


def put_weights(files: Files, record: dict, content: bytes) -> None:
    """Take other weights, and say everywhere that they are the run's."""
    files["student.safetensors"] = content
    sha256 = hashlib.sha256(content).hexdigest()
    record["student_sha256"] = sha256
    passport = json.loads(files["student.passport.json"]) | {"sha256": sha256}
    files["student.passport.json"] = json.dumps(passport).encode()


def put_rows(files: Files, record: dict, rows: list[dict]) -> None:
    """Take other metrics, and say so in the record."""
    files["metrics.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    record["metrics_sha256"] = hashlib.sha256(files["metrics.jsonl"]).hexdigest()
    keys = ("train/loss", "train/top1", "test/top1")
    record["curve"] = {key: [round(row[key], 4) for row in rows] for key in keys}


def rows_of(files: Files) -> list[dict]:
    return [json.loads(line) for line in files["metrics.jsonl"].splitlines()]


# Each is refused, and the line says why.


def a_better_score(files, record):
    record["top1_last"] += 5.0


def a_better_score_with_its_curve(files, record):
    rows = rows_of(files)
    for row in rows:
        row["test/top1"] = 95.0
    put_rows(files, record, rows)
    record |= {key: 95.0 for key in ("top1_last", "top1_last5", "top1_best_on_test")}
    record["epoch_best_on_test"] = 1


def a_better_loss(files, record):
    rows = rows_of(files)
    rows[-1]["test/loss"] = record["loss_last"] = 0.1
    put_rows(files, record, rows)


def an_edited_curve(files, record):
    record["curve"]["test/top1"][0] += 1.0


def edited_metrics(files, record):
    files["metrics.jsonl"] = files["metrics.jsonl"].replace(b'"epoch": 1', b'"epoch": 1.0', 1)


def an_epoch_less(files, record):
    put_rows(files, record, rows_of(files)[1:])


def weights_of_another_run(files, record):
    files["student.safetensors"] = read(Path("sent/synthetic-none-resnet8-ce-s1.zip"))[
        "student.safetensors"
    ]


def weights_of_another_run_with_their_sha256(files, record):
    put_weights(
        files, record, read(Path("sent/synthetic-none-resnet8-ce-s1.zip"))["student.safetensors"]
    )


def weights_of_another_network(files, record):
    put_weights(
        files, record, read(Path("sent/synthetic-none-resnet14-ce-s0.zip"))["student.safetensors"]
    )


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def weights_with_code(files, record):
    put_weights(files, record, pickle.dumps({"conv1.weight": Evil()}))


def another_configuration(files, record):
    record["config"]["schedule"]["lr"] = 0.123


def another_protocol(files, record):
    record["protocol"] = "synthetic-240ep-b64-last"


def another_method(files, record):
    record["config"]["method"] |= {"_target_": "os.system", "name": "ce"}
    own = record_of({**record, "checksum": ""})
    record["hash"] = digest(own.config, own.data.sha256, {})
    record["run_id"] = f"{record['cell']}-s0-{record['hash']}"


def put_in(files: Files, name: str, **changes: object) -> None:
    files[name] = json.dumps(json.loads(files[name]) | changes).encode()


def a_passport_of_another_score(files, record):
    put_in(files, "student.passport.json", top1=95.0)


def a_passport_of_another_network(files, record):
    put_in(files, "student.passport.json", network="resnet14")


def a_passport_without_a_score(files, record):
    put_in(files, "student.passport.json", top1=None)


def nobodys_name(files, record):
    put_in(files, "submission.json", by="a\nb")


def another_format(files, record):
    put_in(files, "submission.json", format=2)


def a_failed_run(files, record):
    failed = fail(record)
    record.clear()
    record |= failed


def a_data_set_of_one_s_own(files, record):
    """All names follow from it, so that only its pixels are missing here."""
    for key in ("cell", "protocol"):
        record[key] = record[key].replace("synthetic", "mine", 1)
    record["data"]["name"] = record["config"]["dataset"]["name"] = "mine"
    own = record_of({**record, "run_id": f"{record['cell']}-s0-{record['hash']}", "checksum": ""})
    record["hash"] = digest(own.config, own.data.sha256, {})
    record["run_id"] = f"{record['cell']}-s0-{record['hash']}"


def epochs_without_a_score(files, record):
    """One that the curve does not hold."""
    rows = rows_of(files)
    for row in rows:
        del row["test/top5"]
    put_rows(files, record, rows)


def something_else_beside_it(files, record):
    files["../evil.py"] = b""


REFUSED = {
    a_better_score: "its top1_last is",
    a_better_score_with_its_curve: "its top1_last is 95.0, its weights score",
    a_better_loss: "its loss_last is 0.1, its weights score",
    an_edited_curve: "its curve of test/top1 is not that of metrics.jsonl",
    edited_metrics: "metrics.jsonl is not the file of its record",
    an_epoch_less: "metrics.jsonl has not the epochs 1 to 3",
    weights_of_another_run: "these are not the weights of its record",
    weights_of_another_run_with_their_sha256: "its student scores ",
    weights_of_another_network: "is not of a resnet8",
    weights_with_code: "student.safetensors is refused, for more than plain data could run code",
    another_configuration: "its hash is",
    another_protocol: "its protocol is synthetic-240ep-b64-last, its configuration gives",
    another_method: "os.system",
    a_passport_of_another_score: "its passport says 95.00",
    a_passport_of_another_network: "its passport is of a resnet14 with top-1 ",
    a_passport_without_a_score: "its passport is of a resnet8 with top-1 None, its record of",
    nobodys_name: "submission.json is not what kdbench-submit writes",
    another_format: "(format=2 is not 1: use the version that wrote it)",
    a_failed_run: "is no finished run of a classifier",
    a_data_set_of_one_s_own: "is of the data set mine: ",
    epochs_without_a_score: "metrics.jsonl has no 'test/top5'",
    something_else_beside_it: "'../evil.py' should not be there",
}


def test_what_is_refused(command, bundles):
    """One forged bundle after the other, in one command, so that torch is set up once."""
    whole = read(bundles / f"{CE}.zip")
    for change in REFUSED:
        write(path := bundles / f"{change.__name__}.zip", whole)
        forge(path, change)
    names = [f"sent/{change.__name__}.zip" for change in REFUSED]
    result = command("verify", *names, f"sent/{CE}.zip")
    assert result.code == 1
    lines = result.err.splitlines()
    assert len(lines) == len(REFUSED), result.err
    for line, name, said in zip(lines, names, REFUSED.values(), strict=True):
        assert line.startswith(f"kdbench: {name}: refused: "), line
        assert said in line
        assert "/tmp" not in line
    assert f"sent/{CE}.zip: accepted, " in result.out, "the last one is whole"
    assert not Path("executed").exists()
    assert not Path("evil.py").exists()


@pytest.mark.parametrize("form", ["torn", "packed", "twice", "no archive", "nothing"])
def test_archives_that_are_no_bundles(command, bundles, form):
    path, files = bundles / f"{CE}.zip", read(bundles / f"{CE}.zip")
    said = "no bundle"
    if form == "torn":
        path.write_bytes(path.read_bytes()[:-100])
        said = "cannot be read as a bundle"
    elif form == "packed":
        write(path, files, compression=zipfile.ZIP_DEFLATED)
    elif form == "twice":
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("record.json", files["record.json"])
    elif form == "no archive":
        path.write_text("a page that says 404")
        said = "cannot be read as a bundle"
    else:
        path.unlink()
        said = "cannot be read as a bundle"
    result = command("verify", str(path))
    assert result.code == 1
    assert said in result.err
    assert len(result.err.splitlines()) == 1


def test_a_teacher_comes_before_those_that_it_taught(command, bundles):
    alone = command("verify", f"sent/{KD}.zip")
    assert "was taught by a resnet14 that nobody knows" in alone.err
    simkd = "sent/synthetic-resnet14-resnet8-simkd-s0.zip"
    both = command("verify", "sent/synthetic-none-resnet14-ce-s0.zip", f"sent/{KD}.zip", simkd)
    assert both.code == 0, both.err
    assert both.out.count(": accepted, ") == 3, "SimKD's other head is built too"

    def better_teacher(files, record):
        record["teachers"][0]["top1"] = 99.0

    forge(bundles / f"{KD}.zip", better_teacher)
    forged = command("verify", "sent/synthetic-none-resnet14-ce-s0.zip", f"sent/{KD}.zip")
    assert "says that its teacher resnet14 scores 99.00; these weights score" in forged.err


def test_accepted_records_enter_the_ledger_with_who_computed_them(command, bundles):
    Path("results").mkdir()
    result = command("verify", f"sent/{CE}.zip", "--take")
    assert result.code == 0, result.err
    (record,) = Path("results/runs").glob("*.json")
    assert f"; it is in {record}" in result.out
    assert record.read_bytes() == (runs()[CE] / "record.json").read_bytes()
    report = command("report")
    assert report.code == 0, report.err
    table = next(Path("results/tables").glob("synthetic-*.md")).read_text()
    assert "sent by others, their weights scored again here: ce by A Lab." in table
    assert "A Lab, verified" in Path("results/index.html").read_text()
    assert command("report", "--check").code == 0
    other = json.loads(record.read_text()) | {"seconds": 1e6}  # no run here takes so long
    record.write_bytes(sealed(other))
    ledger = open_ledger([Path("results/runs")], None, verified=Path("results/verified"))
    assert "verifies another record of" in ledger.problems[0]
    kept = command("verify", f"sent/{CE}.zip", "--take")
    assert kept.code == 1
    assert "is another record of the same run, and stays" in kept.err
    next(Path("results/verified").iterdir()).write_text("{}")
    torn = open_ledger([Path("results/runs")], None, verified=Path("results/verified"))
    assert "restore it, or remove it" in torn.problems[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "--by", "A Lab"], "no run nowhere"),
        (["runs", "--by", "A Lab"], "runs is 6 runs: name one of"),
        (
            ["resnet8:x.pth", "--by", "A Lab"],
            "resnet8:x.pth is a checkpoint without a record: name",
        ),
        ([CE, "--by", " "], "by must be a name of 1 to 100 printable letters"),
        ([CE], "the following arguments are required: --by"),
        ([CE, "--by", "A Lab", "--out", "nowhere/x.zip"], "cannot write nowhere/x.zip"),
    ],
)
def test_what_cannot_be_sent(command, trained, arguments, said):
    result = command("submit", *arguments)
    assert said in result.error_line


def test_a_run_without_its_metrics_is_not_sent(command, trained):
    (runs()[CE] / "metrics.jsonl").unlink()
    assert "metrics.jsonl is missing" in command("submit", CE, "--by", "A Lab").error_line


def test_a_ledger_that_is_not_there(command, trained):
    result = command("verify", "x.zip", "--take", "--results", "nowhere")
    assert "nowhere does not exist: name the ledger with --results" in result.error_line


def test_a_damaged_passport_of_a_known_teacher_is_one_line(command):
    """Before any bundle is opened: without the teachers none can be judged."""
    Path("weights").mkdir()
    Path("weights/mine.passport.json").write_text("{")
    line = command("verify", "x.zip", "y.zip").error_line
    assert line.startswith("weights/mine.passport.json ")


def test_a_damaged_record_in_the_ledger_hides_no_teacher(tmp_path):
    whole = make_record(teachers=[{"name": "resnet32x4", "sha256": "a" * 64, "top1": 79.0}])
    folder = write_records(tmp_path / "runs", make_record("at"), whole)
    next(folder.glob("*-at-s0-*")).write_text("{")
    known = known_teachers(tmp_path)
    assert (known["a" * 64], known[whole["student_sha256"]]) == (79.0, None)
    assert "1" * 64 not in known, "the teacher of the damaged one"
