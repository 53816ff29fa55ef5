"""kdbench-analyse on small finished runs."""

import json
import re
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from kdbench.records.record import checksum, write_checked
from support.finished import DATA
from support.runs import runs

HERE = ["runtime=cpu", "runtime.threads=1"]


def numbers(out: str) -> dict:
    return json.loads((Path(out) / "analysis.json").read_text())


def test_everything_of_a_folder_of_runs(command, trained):
    result = command("analyse", "runs=runs", "out=first", *HERE)
    assert result.code == 0, result.err
    found = numbers("first")
    assert found["checksum"] == checksum(found)
    names = set(found["networks"])
    assert {"resnet8 ce seed 0", "resnet8 kd seed 1", "resnet14 ce seed 0"} < names
    assert found["networks"]["resnet8 ce seed 0"]["compared_with"] == ["resnet14"]
    assert found["networks"]["resnet14 ce seed 0"]["compared_with"] == [], "it is the teacher"
    for facts in found["networks"].values():
        record = json.loads((Path("runs") / facts["name"] / "record.json").read_text())
        assert facts["top1"] == pytest.approx(record["top1_last"], abs=100 / 60 + 1e-6)
        assert facts["sha256"] == record["student_sha256"]
    measures = found["measures"]
    assert set(measures) == {
        *("correlation", "entropy", "calibration", "embedding", "similarity", "agreement"),
    }
    assert measures["correlation"]["resnet8 kd seed 0"]["difference"] > 0
    assert len(measures["entropy"]["resnet8 kd seed 0"]["bins"]) == 10
    course = measures["entropy"]["resnet8 kd seed 0"]["epochs"]
    rows = (runs()["synthetic-resnet14-resnet8-kd-s0"] / "metrics.jsonl").read_text().splitlines()
    assert course == [round(json.loads(row)["test/entropy"], 8) for row in rows]
    assert [one["seeds"] for one in measures["agreement"]["seeds"].values()] == [2, 2]
    simkd = measures["similarity"]["resnet8 simkd seed 0"]
    assert simkd["student"] == ["stem", "stage1", "stage2", "stage3", "pooled"]
    written = {path.name for path in Path("first").iterdir()}
    assert written == {Path(line).name for line in result.out.splitlines() if "first/" in line}
    page = (Path("first") / "index.html").read_text()
    assert page.count("<figure>") == len([name for name in written if name.endswith(".svg")])
    loads = re.findall(r'(?:src|href)="(?!data:|#)([^"]+)', page)
    assert not loads, "the page needs nothing but itself"
    assert len(set(re.findall(r' id="([^"]+)"', page))) == len(re.findall(r' id="([^"]+)"', page))


def test_twice_the_same_bytes(command, trained):
    what = "what=[correlation,entropy,calibration,similarity,agreement]"
    for out in ("first", "second"):
        assert command("analyse", "runs=synthetic-resnet14-resnet8-kd", what, f"out={out}",
                       *HERE).code == 0  # fmt: skip
    for path in Path("first").iterdir():
        assert path.read_bytes() == (Path("second") / path.name).read_bytes(), path.name


def test_a_checkpoint_beside_a_run(command, trained):
    run = runs()["synthetic-none-resnet8-ce-s0"]
    shutil.copy(run / "student.safetensors", "mine.safetensors")
    asked = ["runs=[synthetic-resnet14-resnet8-kd-s0,resnet8:mine.safetensors]"]
    result = command("analyse", *asked, "what=agreement", *HERE)
    assert result.code == 0, result.err
    found = numbers("analysis")
    assert found["networks"]["mine"]["method"] is None
    assert found["measures"]["agreement"]["mine"]["top1"] > 0


def test_entropy_over_epochs_is_of_the_run_and_may_not_have_been_measured(command, trained):
    """Runs of before it was measured have no such figure; rows of another run are refused."""
    run = runs()["synthetic-resnet14-resnet8-kd-s0"]
    path, record = run / "metrics.jsonl", json.loads((run / "record.json").read_text())
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {"test/entropy"} < rows[0].keys()
    older = "".join(json.dumps({k: v for k, v in row.items() if k != "test/entropy"}) + "\n"
                    for row in rows)  # fmt: skip
    path.write_text(older)
    asked = [f"runs={run}", "what=entropy", *HERE]
    assert "metrics.jsonl is not the file of its record" in command("analyse", *asked).error_line
    record["metrics_sha256"] = sha256(older.encode()).hexdigest()
    write_checked(record, run / "record.json")
    assert command("analyse", *asked).code == 0
    assert "epochs" not in numbers("analysis")["measures"]["entropy"]["kd"]
    assert not Path("analysis/entropy-epochs.svg").exists()


def record_protocol() -> str:
    return json.loads(next(Path("runs").glob("*/record.json")).read_text())["protocol"]


def bad(command, *words: str) -> str:
    line = command("analyse", *words, *HERE).error_line
    assert not Path("analysis").exists(), "nothing is written"
    return line


def test_names_that_are_nobodys(command, trained):
    assert "no run is named: set runs=" in bad(command)
    line = bad(command, "runs=synthetic-none-resnet8-cee-s0")
    assert "did you mean 'synthetic-none-resnet8-ce-s0'?" in line
    assert "what[0]='corelation' is not valid: did you mean 'correlation'?" in bad(
        command, "runs=runs", "what=corelation"
    )
    assert "no checkpoint nowhere.pth: name a file" in bad(command, "runs=resnet8:nowhere.pth")


def test_a_place_that_cannot_be_written(command, trained):
    Path("file").write_text("kept")
    asked = ["runs=synthetic-none-resnet8-ce-s0", "what=agreement", "out=file/in"]
    assert bad(command, *asked) == "cannot write to file/in (Not a directory): set out=DIR"
    assert Path("file").read_text() == "kept"


def test_runs_of_different_data(command, trained):
    other = ["dataset.num_test=40", "dataset.seed=5", "runs_dir=others"]
    assert command("train", *DATA, *other, "student=resnet8").code == 0
    line = bad(command, "runs=[synthetic-none-resnet8-ce-s0,others]")
    assert line.startswith("runs of different data in one figure: synthetic-none-resnet8-ce-s0")


def test_measures_that_need_a_teacher(command, trained):
    run = "runs=synthetic-none-resnet8-ce-s0"
    assert "entropy is the teacher's: name a run with a teacher" in bad(
        command, run, "what=entropy"
    )
    assert "similarity is to a teacher: name a run" in bad(command, run, "what=similarity")


def test_a_teacher_that_is_gone_or_another(command, trained):
    teacher = runs()["synthetic-none-resnet14-ce-s0"]
    other = runs()["synthetic-none-resnet8-ce-s0"] / "student.safetensors"
    teacher.rename("moved")
    run = "runs=synthetic-resnet14-resnet8-kd-s0"
    assert "Set teacher_file=FILE, resnet14 taught synthetic-resnet14" in bad(command, run)
    assert "is not the resnet14 that taught" in bad(command, run, f"teacher_file={other}")
    assert command("analyse", run, "teacher_file=moved", "what=agreement", *HERE).code == 0


def test_a_passport_that_disagrees(command, trained):
    run = runs()["synthetic-none-resnet8-ce-s0"]
    path = run / "student.passport.json"
    passport = json.loads(path.read_text())
    for change, said in (
        ({"top1": 99.0}, "scores"),
        ({"mean": [0.1, 0.1, 0.1]}, "another normalisation"),
        ({"network": "resnet20"}, "is a resnet20 by its passport, not a resnet8"),
        ({"dataset": "digits"}, "was trained on digits, not on synthetic"),
        ({"sha256": "0" * 64}, "is not the file of its passport"),
    ):
        path.write_text(json.dumps({**passport, **change}))
        assert said in bad(command, f"runs={run}"), change


def test_a_class_with_one_image(command, trained):
    few = ["dataset.num_test=11", "runs_dir=few"]
    assert command("train", *DATA, *few, "student=resnet8").code == 0
    line = bad(command, "runs=few", "what=embedding")
    assert line.startswith("class 1 has 1 image(s) to score on, an embedding needs two of each")


def test_a_run_without_a_student(command, trained):
    run = runs()["synthetic-none-resnet8-ce-s0"]
    (run / "student.safetensors").unlink()
    assert "has no trained student: finish it" in bad(command, f"runs={run}")
    shutil.rmtree(run)
    run = runs()["synthetic-none-resnet8-ce-s1"]
    (run / "config.json").write_text("{}")
    assert "is no run's configuration" in bad(command, f"runs={run}")


def test_measures_on_request(command, trained):
    transfer = ["dataset@transfer=synthetic", "transfer.num_train=60", "transfer.num_test=40",
                "transfer.image_size=64", "transfer.seed=7"]  # fmt: skip
    asked = ["runs=synthetic-resnet14-resnet8-kd", "what=[transfer,robustness,cost]", *transfer]
    result = command("analyse", *asked, *HERE)
    assert result.code == 0, result.err
    found = numbers("analysis")["measures"]
    assert set(found["cost"]) == {"resnet8", "resnet14"}
    spoilt = found["robustness"]["top1"]["kd seed 0"]
    assert {len(values) for key, values in spoilt.items() if key != "clean"} == {5}
    assert "of ours" in found["robustness"]["corruptions"]
    probes = sorted(Path("analysis/transfer-synthetic").iterdir())
    assert len(probes) == 2
    record = json.loads(probes[0].read_text())
    assert record["checksum"] == checksum(record)
    assert record["to"]["side"] == 32
    table = Path("analysis/transfer-synthetic.md").read_text()
    assert table.count("| 2 |") == 1, "one configuration of two seeds"
    other = ["runs=synthetic-none-resnet8-ce-s0", "what=transfer", *transfer]
    assert command("analyse", *other, *HERE).code == 0
    rows = Path("analysis/transfer-synthetic.md").read_text().splitlines()[4:]
    assert len(rows) == 2, "the table is of all records that are there"
    shown = command("table", "runs", "analysis").out
    assert "**transfer from synthetic to synthetic, 32 x 32**" in shown
    assert len([line for line in shown.splitlines() if line.startswith("| synthetic-")]) == 2
    alone = command("table", "analysis/transfer-synthetic").out
    assert alone.strip() == shown[shown.index("**transfer") :].strip()
    csv = command("table", "runs", "analysis", "--format", "csv")
    assert "transfer" not in csv.out
    assert "tables of transfer results are left out, they are Markdown" in csv.err
    assert "transfer" not in command("table", "runs", "--protocol", record_protocol()).out
    write_checked({"top1": 1.0}, probes[1])
    assert "is no transfer record: restore it" in command("table", "analysis").error_line
    probes[0].write_text("{}")
    assert "is not a record: restore it" in command("analyse", *other, *HERE).error_line


def test_transfer_to_nothing_and_to_other_channels(command, trained):
    run = "runs=synthetic-none-resnet8-ce-s0"
    line = bad(command, run, "what=transfer")
    assert line == "no data set to transfer to is named: set dataset@transfer=stl10"
