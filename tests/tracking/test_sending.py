"""kdbench-sync replays finished runs from local files, once, and names what it cannot send."""

import hashlib
import json
import re
import sys
from pathlib import Path

import pytest
import wandb

from kdbench import sync as entry
from kdbench.records.passport import Passport, beside, sha256_of, write_passport
from kdbench.tracking.sending import STUCK, sync
from kdbench.tracking.wandb_mirror import Mirror, Target, UnreachableError, WandbLogger
from kdbench.tracking.wandb_names import safe
from support import records, wandb_files
from support.records import write_content

OFFLINE = Target("kdbench", None, "offline", Path("sync"))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))


def run_folder(record, checkpoints=None) -> Path:
    """The folder that a run of this record leaves, with four bytes for weights."""
    folder = Path("runs") / record["run_id"]
    folder.mkdir(parents=True)
    weights = folder / "student.safetensors"
    weights.write_bytes(f"{record['seed']:04}".encode())
    source = f"kdbench run {record['run_id']}"
    sha256 = sha256_of(weights)
    write_passport(Passport(sha256=sha256, source=source), beside(weights))
    teachers = {name: {"checkpoint": path} for name, path in (checkpoints or {}).items()}
    (folder / "config.json").write_text(json.dumps({"teacher": teachers}))
    rows = [{"epoch": epoch, "lr": 0.1, "test/top1": record["top1_last"]} for epoch in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = {**record, "epochs": 2, "student_sha256": sha256}
    write_content(made, folder / "record.json")
    return folder


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["kdbench-sync", *arguments])
    try:
        entry.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr()


def test_a_committed_record_becomes_a_run_with_its_curve():
    record = records.make_record("dkd", seed=3, top1=71.5)
    folder = records.write(Path("results"), record)
    assert sync([folder], OFFLINE) == (1, 0, [])
    entries = wandb_files.written(OFFLINE.folder, record["run_id"])
    run = next(entry.run for entry in entries if entry.HasField("run"))
    assert (run.run_group, run.job_type) == (record["cell"], "distil")
    assert set(run.tags) == {"cifar100", "resnet32x4_resnet8x4", "dkd", record["protocol"]}
    rows = wandb_files.history(entries)
    assert rows == [
        {"epoch": 1, "train/loss": 3.0, "train/top1": 30.0, "test/top1": 40.0},
        {"epoch": 2, "train/loss": 2.0, "train/top1": 71.5, "test/top1": 71.5},
    ]
    summary = wandb_files.summary(entries)
    assert (summary["top1_last"], summary["agreement/resnet32x4"]) == (71.5, 80.0)
    assert summary["teacher_top1/resnet32x4"] == 79.42
    (teacher,) = wandb_files.config(entries)["teachers"].values()
    assert teacher == record["teachers"][0]


def test_a_second_call_sends_what_is_new_or_changed():
    first, second = (records.make_record(seed=seed) for seed in (0, 1))
    folder = records.write(Path("results"), first)
    assert sync([folder], OFFLINE) == (1, 0, [])
    records.write(folder, second)
    assert sync([folder], OFFLINE) == (1, 1, [])
    assert sync([folder], OFFLINE) == (0, 2, [])
    records.write(folder, {**first, "top1_last": 60.0})
    assert sync([folder], OFFLINE) == (1, 1, [])
    entries = wandb_files.written(OFFLINE.folder, first["run_id"])  # one file: the old one is gone
    assert wandb_files.summary(entries)["top1_last"] == 60.0
    assert sync([folder], OFFLINE._replace(project="other"))[0] == 2


def test_the_ledger_is_a_table_of_cells():
    folder = records.write(
        Path("results"),
        *(records.make_record(method, seed) for method in ("kd", "dkd") for seed in (0, 1)),
    )
    sync([folder], OFFLINE)
    (path,) = OFFLINE.folder.glob("wandb/*-ledger/files/media/table/*.json")
    table = json.loads(path.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["method"], row["n"], row["score"]) for row in rows] == [
        ("kd", 2, 70.0),
        ("dkd", 2, 70.0),
    ]


def test_damaged_and_unfinished_runs_are_named_and_the_others_sent(monkeypatch, capsys):
    torn, whole, altered, going = (
        run_folder(records.make_record(method)) for method in ("kd", "dkd", "dist", "ofd")
    )
    with (torn / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "lr"')
    text = (altered / "record.json").read_text()
    (altered / "record.json").write_text(text.replace("70.0", "80.0"))
    (going / "record.json").unlink()
    code, said = command(monkeypatch, capsys, "--dir", "sync")
    assert code == 1
    lines = said.err.splitlines()
    assert len(lines) == 2, said.err
    assert all(line.startswith("kdbench: error: ") for line in lines)
    assert f"{torn / 'metrics.jsonl'} is torn" in said.err
    assert f"{altered / 'record.json'} was altered" in said.err
    assert f"{going} has no record yet" in said.out
    assert "1 runs written, 0 written before" in said.out
    entries = wandb_files.written(OFFLINE.folder, whole.name)
    assert [row["lr"] for row in wandb_files.history(entries)] == [0.1, 0.1]


def test_a_row_that_was_altered_is_noticed():
    record = records.make_record()
    folder = run_folder(record)
    path = folder / "metrics.jsonl"
    whole = path.read_bytes()
    signed = {**record, "epochs": 2, "metrics_sha256": hashlib.sha256(whole).hexdigest()}
    write_content(signed, folder / "record.json")
    path.write_bytes(whole.replace(b"0.1", b"0.9", 1))
    assert sync([folder], OFFLINE)[2][0].startswith(f"{path} is torn or not of this run's record")
    path.write_bytes(whole)
    assert sync([folder], OFFLINE) == (1, 0, [])


def test_what_wandb_does_not_take_and_a_torn_configuration_are_lines(monkeypatch, capsys):
    refused, torn = (run_folder(records.make_record(method)) for method in ("kd", "dkd"))
    (torn / "config.json").write_text("{")

    def refuse(mirror, row):
        raise wandb.errors.CommError("no route\nto host")

    monkeypatch.setattr(Mirror, "epoch", refuse)
    code, said = command(monkeypatch, capsys, "--dir", "sync")
    assert code == 1
    assert len(said.err.splitlines()) == 2, said.err
    assert f"{refused / 'record.json'} was not sent (CommError no route to host)" in said.err
    assert f"{torn / 'config.json'} is missing or torn" in said.err


def test_a_failed_run_is_sent_as_failed():
    record = records.fail(records.make_record())
    assert sync([records.write(Path("results"), record)], OFFLINE)[0] == 1
    entries = wandb_files.written(OFFLINE.folder, record["run_id"])
    assert entries[-1].exit.exit_code == 1
    assert "not finite" in wandb_files.summary(entries)["error"]


class FakeRun:
    """What W&B would be told online."""

    def __init__(self, **facts):
        self.facts, self.made, self.used = facts, [], []
        self.config, self.summary = {}, {}
        self.log_artifact, self.use_artifact = self.made.append, self.used.append

    def define_metric(self, *args, **kwargs):
        pass

    log = finish = define_metric


@pytest.fixture
def online(monkeypatch) -> dict[str, FakeRun]:
    """The runs that W&B would be sent, by id."""
    runs: dict[str, FakeRun] = {}
    monkeypatch.setattr(
        wandb, "init", lambda **facts: runs.setdefault(facts["id"], FakeRun(**facts))
    )
    return runs


def test_online_the_teacher_is_the_very_artifact_that_its_own_run_made(online):
    teacher = records.make_record("ce", teacher="none", student="resnet32x4")
    taught_by = run_folder(teacher)
    sha256 = sha256_of(taught_by / "student.safetensors")
    facts = [{"name": "resnet32x4", "sha256": sha256, "top1": 79.42}]
    student = records.make_record("kd", seed=1, teachers=facts)
    run_folder(student, {"resnet32x4": str(taught_by)})
    assert sync([Path("runs")], OFFLINE._replace(mode="online")) == (2, 0, [])
    (made,), (used,) = online[teacher["run_id"]].made, online[student["run_id"]].used
    assert (used.name, used.type, used.digest) == (made.name, "model", made.digest)
    assert online[student["run_id"]].made[0].digest != made.digest
    assert online[student["run_id"]].facts["mode"] == "online"


def test_a_run_whose_weights_are_gone_is_sent_without_lineage(online):
    folder = run_folder(records.make_record(), {"resnet32x4": "gone.pth"})
    (folder / "student.safetensors").unlink()
    assert sync([folder], OFFLINE._replace(mode="online")) == (1, 0, [])
    run = online[folder.name]
    assert (run.made, run.used, run.summary["top1_last"]) == ([], [], 70.0)


def test_without_a_way_to_wandb_the_call_ends_with_one_line(monkeypatch, capsys):
    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login`.")

    monkeypatch.setattr(wandb, "init", refuse)
    folder = records.write(Path("results"), records.make_record(), records.make_record(seed=1))
    with pytest.raises(UnreachableError):
        sync([folder], OFFLINE)
    code, said = command(monkeypatch, capsys, "results", "--mode", "online")
    assert code == 1
    (line,) = said.err.splitlines()
    assert "No API key configured. Use `wandb login`." in line


def test_a_folder_that_cannot_be_made_is_one_line(monkeypatch, capsys):
    records.write(Path("results"), records.make_record())
    Path("sync").write_text("a file")
    code, said = command(monkeypatch, capsys, "results", "--dir", "sync")
    assert code == 1
    (line,) = said.err.splitlines()
    assert line.startswith("kdbench: error: ")
    assert "File exists: 'sync'" in line


@pytest.mark.parametrize("name", ["fruits:v2", "Früchte", "a b#c", "x/y", "ü" * 60, "%41?;,'"])
def test_names_that_wandb_does_not_take_are_made_safe(name):
    """Readable, another for another name, and the same every time."""
    made = safe(name)
    assert re.fullmatch(r"[A-Za-z0-9_.+-]{1,128}", made)
    assert made == safe(name)
    assert made != safe(name + "!")
    assert safe("fruits:v2").startswith("fruits_v2-")
    assert safe("Früchte").startswith("Fruchte-")
    record = records.make_record(dataset=name.replace("/", "_"), cell=f"{name.replace('/', '_')}-x")
    record["run_id"] = f"{record['cell']}-s0-{record['hash']}"
    other = records.make_record("dkd")
    folder = records.write(Path("results"), record, other)
    assert sync([folder], OFFLINE) == (2, 0, [])
    entries = wandb_files.written(OFFLINE.folder, safe(record["run_id"]))
    run = next(entry.run for entry in entries if entry.HasField("run"))
    assert (run.run_id, run.run_group) == (safe(record["run_id"]), safe(record["cell"]))


def test_names_that_wandb_takes_stay_and_long_ones_are_cut():
    for name in (records.make_record()["run_id"], "cifar100-a+b-c-kd-s0-0123abcd"):
        assert safe(name) == name
    long = [safe("x" * 190 + end) for end in "ab"]
    assert [len(name) for name in long] == [128, 128]
    assert long[0] != long[1]


def test_one_run_that_wandb_refuses_keeps_no_other_back(monkeypatch, capsys):
    first, *others = (records.make_record(method) for method in ("at", "kd", "dkd"))
    records.write(Path("results"), first, *others)
    init = wandb.init

    def refuse(**facts):
        if facts["id"] == first["run_id"]:
            raise wandb.errors.CommError("run was deleted")
        return init(**facts)

    monkeypatch.setattr(wandb, "init", refuse)
    code, said = command(monkeypatch, capsys, "results", "--dir", "sync")
    assert (code, "2 runs written, 0 written before" in said.out) == (1, True)
    (line,) = said.err.splitlines()
    assert f"{first['run_id']}.json was not sent: " in line
    assert "run was deleted" in line


def test_refused_for_one_reason_again_and_again_sending_stops(monkeypatch, capsys):
    asked = []

    def refuse(**facts):
        asked.append(facts["id"])
        raise wandb.errors.CommError("no route to host")

    monkeypatch.setattr(wandb, "init", refuse)
    records.write(Path("results"), *(records.make_record(seed=seed) for seed in range(STUCK + 3)))
    code, said = command(monkeypatch, capsys, "results", "--dir", "sync")
    assert (code, len(asked)) == (1, STUCK)
    (line,) = said.err.splitlines()
    assert "no route to host" in line


def test_a_table_that_wandb_refuses_is_one_line_and_the_runs_are_sent(online, monkeypatch, capsys):
    records.write(Path("results"), records.make_record())
    init = wandb.init  # the fixture's

    def refuse(**facts):
        if facts["id"] == "ledger":
            raise wandb.errors.CommError("quota exceeded")
        return init(**facts)

    with monkeypatch.context() as patch:
        patch.setattr(wandb, "init", refuse)
        code, said = command(monkeypatch, capsys, "results", "--dir", "sync")
    assert (code, "1 runs written, 0 written before" in said.out) == (1, True)
    (line,) = said.err.splitlines()
    assert line.startswith("kdbench: error: the table of cells was not sent: ")
    assert "quota exceeded" in line
    assert command(monkeypatch, capsys, "results", "--dir", "sync")[0] == 0
    assert "ledger" in online, "the same command tries again"


def test_runs_of_two_protocols_are_no_failure(monkeypatch, capsys):
    kinds = (records.make_record(epochs=240), records.make_record(epochs=12))
    records.write(Path("results"), *kinds)
    code, said = command(monkeypatch, capsys, "results", "--dir", "sync")
    assert code == 0, said.err
    assert said.err.startswith("kdbench: warning: runs of resnet8x4 on cifar100 follow 2 protocols")
    assert "2 runs written" in said.out


def test_failed_runs_are_left_out_where_only_done_ones_are_asked_for(monkeypatch, capsys):
    done, failed = records.make_record(), records.fail(records.make_record("dkd"))
    records.write(Path("results"), done, failed)
    code, said = command(monkeypatch, capsys, "results", "--dir", "sync", "--only", "done")
    assert (code, "1 runs written, 0 written before" in said.out) == (0, True)
    assert not list(Path("sync").glob(f"wandb/*{failed['run_id']}"))


def test_another_run_s_folder_is_never_removed():
    """A run's id may hold what a pattern means, or be the end of another's."""
    star = records.make_record(cell="*")
    star["run_id"] = f"*-s0-{star['hash']}"
    other = records.make_record(cell="other")
    other |= {"hash": star["hash"], "run_id": f"other-s0-{star['hash']}"}
    ends = records.make_record(cell="x-other", hash=star["hash"])
    ends["run_id"] = f"x-other-s0-{star['hash']}"
    for changes in ({}, {"top1_last": 60.0}):
        write_again = [{**record, **changes} for record in (other, ends, star)]
        folder = records.write(Path("results"), *write_again)
        assert sync([folder], OFFLINE)[0] == 3
    assert len(list(Path("sync/wandb").glob("offline-run-*-s0-*"))) == 3


def test_what_is_set_wins_over_wandb_s_variables(monkeypatch, capsys):
    records.write(Path("results"), records.make_record())
    for name, value in {"PROJECT": "ours", "ENTITY": "us", "DIR": "elsewhere"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert command(monkeypatch, capsys, "results")[0] == 0
    assert json.loads(Path("elsewhere/state.json").read_text()).keys() == {"offline us/ours"}
    assert command(monkeypatch, capsys, "results", "--dir", "here", "--project", "p")[0] == 0
    assert json.loads(Path("here/state.json").read_text()).keys() == {"offline us/p"}
    monkeypatch.setenv("WANDB_MODE", "disabled")
    code, said = command(monkeypatch, capsys, "results")
    assert (code, "WANDB_MODE=disabled" in said.err) == (2, True)
    monkeypatch.setenv("WANDB_MODE", "ofline")
    assert "did you mean 'offline'?" in command(monkeypatch, capsys, "results")[1].err
    logger = WandbLogger(project="mine", mode="offline")
    assert logger._target[:3] == ("mine", "us", "offline")
