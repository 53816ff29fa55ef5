"""Whatever a command, a file or a table holds: a result, or one line that says what is wrong.

Every test runs twice: a few hundred bad inputs in all, and, marked long, over ten thousand. Inputs
are drawn with a fixed seed, so that a failure is the same everywhere.
"""

import csv
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from kdbench.config.hydra_cli import run
from kdbench.config.run_config import check_train
from kdbench.data.memory.parquet import parquet
from kdbench.data.streaming.packs import pack
from kdbench.data.streaming.shards import facts_of, index_path, read_index, write_index
from kdbench.data.streaming.tar import index_tar
from kdbench.ledger.comparison import compare
from kdbench.ledger.formats import FORMATS, render
from kdbench.ledger.ledger import open_ledger, tables
from kdbench.ledger.page import render as render_page
from kdbench.ledger.published import COLUMNS, choose, claim, read_published
from kdbench.records.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from kdbench.records.contents import Record
from kdbench.records.passport import read_passport
from kdbench.records.reading import record_of
from kdbench.records.record import RECORD_FILE, checksum
from kdbench.records.settings import TrainSettings
from kdbench.records.weight_files import read_content
from kdbench.tracking.sending import history, read_checkpoints
from support.fuzzing import TEXT, VALUES, fuzz, quick_and_long, words
from support.records import fail, make_record, record_at

# Of what it would print of an input.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")


@st.composite
def altered(draw: st.DrawFn, tree: Any) -> Any:
    """A JSON tree with one to three changes anywhere in it."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree)) if isinstance(tree, dict | list) else []
        if not places:
            return draw(VALUES)
        node, key = draw(st.sampled_from(places))
        how = draw(st.sampled_from(["replace", "remove", "rename", "swap"]))
        if how == "replace":
            node[key] = draw(VALUES)
        elif how == "remove":
            del node[key]
        elif how == "rename" and isinstance(node, dict):
            node[draw(TEXT)] = node.pop(key)
        else:
            other, place = draw(st.sampled_from(places))
            node[key] = json.loads(json.dumps(other[place], default=str))
    return tree


def _places(tree: Any) -> Any:
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file with some bytes flipped, lost, added, moved, or cut off."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        # Headers are where formats break.
        at = draw(st.sampled_from([at, at, at % 64, max(len(data) - 1 - at % 64, 0)]))
        how = draw(st.sampled_from(["flip", "set", "cut", "lose", "add", "copy", "zero"]))
        if how == "cut":
            del data[at:]
        elif how == "lose":
            del data[at : at + draw(st.integers(1, 40))]
        elif how == "add":
            data[at:at] = draw(st.binary(min_size=1, max_size=20))
        elif how == "copy":
            data[at:at] = data[: draw(st.integers(1, 200))]
        elif how == "zero":
            data[at : at + 8] = bytes(len(data[at : at + 8]))
        elif at < len(data):
            data[at] = data[at] ^ 1 << draw(st.integers(0, 7)) if how == "flip" else draw(BYTE)
    return bytes(data)


BYTE = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x22, 0x7B]) | st.integers(0, 255)
ODD_FILES = {
    "empty": b"",
    "deep list": b"[" * 9000,
    "deep mapping": b'{"a":' * 9000,
    "deep and whole": b"[" * 9000 + b"]" * 9000,
    "long number": b"1" * 5000,
    "not a number": b"NaN",
    "null": b"null",
    "list": b"[]",
    "utf-16": b"\xff\xfe",
    "one brace": b"{",
}
JUNK = st.binary(max_size=60) | st.sampled_from(sorted(ODD_FILES)).map(ODD_FILES.__getitem__)


def text_files(tree: Any) -> st.SearchStrategy[bytes]:
    """A JSON file: with other values, with damaged bytes, or another file."""
    whole = json.dumps(tree).encode()
    return altered(tree).map(lambda t: json.dumps(t).encode()) | damaged(whole) | JUNK


# Commands.
SETTINGS = words("""method teacher student dataset schedule runtime logger seed pair runs_dir
experiments tuned hydra hydra.sweeper.params hydra/launcher hydra.launcher
hydra.launcher.size hydra.mode hydra.job.name schedule.lr schedule.milestones schedule.epochs
method.temperature method.name student.taps teacher.resnet8.checkpoint teacher.resnet8.passport
method._target_ dataset.root dataset.mean method@inner method.inner
hydra.searchpath hydra.run.dir""")
KEYS = st.sampled_from(SETTINGS) | st.text(max_size=6)
PREFIXES = st.sampled_from(["", "", "", "+", "++", "~", "-", "--"])
SCALARS = words(r"""kd ce resnet8 none null true 1e999 -1 0 3.5 nan [] {} [1,2] {a:1} a,b 1,2
range(0,3) choice(a,b) glob(*) sort(3,1) int(x) ${seed} ${method} ${x} ${ ${oc.env:HOME}
${oc.env:NO} ${oc.eval:1} ??? '' 'a " \ [ { ] a=b os.system kdbench.methods.kd.KD {a:{b:c}}
interval(0,1) shuffle(range(3)) float('inf') extend_list(1) [[[[]]]] / ../../etc/passwd
digits cifar100 [a,a] [null]""")
LONG = ["a b", "1" * 400, "1" * 5000, "[" * 200]
VALUE = st.sampled_from(SCALARS + LONG) | st.text(max_size=8)
OVERRIDES = st.builds("{}{}={}".format, PREFIXES, KEYS, VALUE)
ODD_LISTS = st.lists(
    OVERRIDES
    | st.builds("{}{}".format, PREFIXES, KEYS)
    | st.text(max_size=8)
    | st.sampled_from(
        ["-m", "--multirun", "--config-name", "--config-dir", "-cn=x", "--run", "--"]
    ),
    min_size=1,
    max_size=3,
)
# Settings that there are: most of these are composed, where most of the others are not.
THERE = words("""seed runs_dir method.name student.name schedule.lr schedule.milestones
schedule.epochs schedule.batch_size dataset.name dataset.mean dataset.val_split runtime.device
runtime.threads
runtime.teacher runtime.table_dir hydra.run.dir hydra.job.name hydra.sweeper.params
++method.x ++teacher.x ++hydra.x +x +hydra.job_logging.x +hydra.callbacks.x""")
THERE_LISTS = st.lists(
    st.builds("{}={}".format, st.sampled_from(THERE), st.sampled_from(SCALARS)),
    min_size=1,
    max_size=3,
)
ARGUMENTS = THERE_LISTS | ODD_LISTS
ENDLESS = {"--shell-completion", "-sc", "--hydra-help", "--help", "-h", "--version", "--info", "-i"}


@pytest.fixture
def composing(monkeypatch, tmp_path, capsys):
    """A command up to where it would train; what it said is one line or nothing."""
    monkeypatch.chdir(tmp_path)

    def task(config: TrainSettings) -> None:
        json.dumps(config.spelt())

    def check(arguments: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["kdbench-train", *arguments])
        code = 0
        try:
            run("config", check_train, task)
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr().err.splitlines()
        assert code in (0, 1, 2)
        assert bool(code) == bool(said)
        for line in said:  # a sweep's jobs fail one by one
            assert line.startswith("kdbench: error: "), line

    return check


@quick_and_long(20, 1200)
def test_commands(composing, examples):
    fuzz(composing, ARGUMENTS.filter(lambda a: not ENDLESS & set(a)), examples)


# Records.
RECORDS = [
    make_record("kd", 0),
    make_record("dkd", 1, 71.0),
    make_record("ce", 0, teacher="none", hardware={"cpu": "x", "threads": 2, "gpu": "H200"}),
    fail(make_record("at", 2)),
]


def signed(record: Any) -> bytes:
    """A record's file with a checksum that holds, where there can be one."""
    if isinstance(record, dict):
        record.pop("checksum", None)
        try:
            record["checksum"] = checksum(record)
        except (ValueError, TypeError):  # NaN
            record["checksum"] = "0"
    return json.dumps(record).encode()


RECORD_FILES = st.sampled_from(RECORDS).flatmap(
    lambda record: altered(record).map(signed) | damaged(signed(record)) | JUNK
)


@pytest.fixture
def records(tmp_path):
    """A folder of good records beside which a bad one may lie."""
    for i, record in enumerate(RECORDS):
        path = tmp_path / "runs" / str(i) / RECORD_FILE
        path.parent.mkdir(parents=True)
        path.write_bytes(signed(json.loads(json.dumps(record))))
    bad = tmp_path / "runs" / "bad" / RECORD_FILE
    bad.parent.mkdir()
    return bad


@quick_and_long(100, 3000)
def test_records(records, examples):
    def check(content: bytes) -> None:
        records.write_bytes(content)
        ledger = open_ledger([records.parents[1]], None)
        assert not any("\n" in line for line in ledger.problems)
        for form in FORMATS:
            render(tables(ledger), form)
        compare("dkd", "kd", [records.parents[1]])
        record_at(records)

    fuzz(check, RECORD_FILES, examples)


@quick_and_long(4, 60)
def test_records_on_the_page(records, examples):
    def check(content: bytes) -> None:
        records.write_bytes(content)
        render_page(open_ledger([records.parents[1]], None))

    fuzz(check, RECORD_FILES, examples)


METRICS = [
    {"epoch": i, "lr": 0.1, "train/loss": 2.0, "test/top1": 40.0 + i, "test/top5": 80.0}
    for i in (1, 2)
]


@quick_and_long(60, 1500)
def test_metrics(tmp_path, examples):
    done = make_record(epochs=2, top1=42.0)
    lines = st.sampled_from([record_of(done), record_of(fail(done))])
    whole = "\n".join(json.dumps(row) for row in METRICS).encode()
    files = damaged(whole) | altered(METRICS).map(
        lambda rows: "\n".join(map(json.dumps, rows if isinstance(rows, list) else [rows])).encode()
    )

    def check(drawn: tuple[Record, bytes]) -> None:
        record, content = drawn
        (tmp_path / "metrics.jsonl").write_bytes(content)
        (tmp_path / "config.json").write_bytes(content)
        for epoch, row in enumerate(history(record, tmp_path), start=1):
            assert row["epoch"] == epoch
            assert all(isinstance(value, int | float) for value in row.values())
        read_checkpoints(tmp_path)

    fuzz(check, st.tuples(lines, files | JUNK), examples)


# Published scores.
ROW = dict.fromkeys(COLUMNS, "") | {
    **{"source": "Tables", "dataset": "cifar100", "teacher": "resnet32x4", "student": "resnet8x4"},
    **{
        "method": "KD",
        "kdbench": "kd",
        "metric": "top1",
        "score": "73.3",
        "epochs": "240",
        "protocol": "last",
    },
    **{"url": "https://example.org", "seeds_or_trials": "3", "score_std": "0.2"},
}
NUMERALS = ["1e5", "١٢", "²", "0x1", "1_0", "infinity", "-0", "200", "9" * 5000]
CELLS = TEXT | st.sampled_from(NUMERALS)


@st.composite
def published_files(draw: st.DrawFn) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for _ in range(draw(st.integers(1, 3))):
        row = dict(ROW)
        for name in draw(st.lists(st.sampled_from(COLUMNS), max_size=3)):
            row[name] = draw(CELLS)
        cells = list(row.values())
        writer.writerow(cells[: draw(st.sampled_from([len(cells), len(cells), 3]))])
    return file.getvalue().encode(errors="surrogatepass")


@quick_and_long(80, 2000)
def test_published_scores(tmp_path, examples):
    path, runs = tmp_path / "published.csv", tmp_path / "runs"
    runs.mkdir()
    for i, record in enumerate(RECORDS):
        (runs / f"r-s{i}-0.json").write_bytes(signed(json.loads(json.dumps(record))))

    def check(content: bytes) -> None:
        path.write_bytes(content)
        rows, problems = read_published(path)
        assert not any("\n" in line for line in problems)
        for method in ("kd", "dkd"):
            choose(rows, method)
            claim(rows, method)
        for form in FORMATS:
            render(tables(open_ledger([runs], path)), form)

    whole = "\n".join([",".join(COLUMNS), ",".join(ROW.values())]).encode()
    fuzz(check, published_files() | damaged(whole) | JUNK, examples)


PASSPORT = {"sha256": "0" * 64, "network": "resnet8", "dataset": "cifar100", "top1": 70.0}
PASSPORT |= {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "source": "x", "licence": None}


@quick_and_long(80, 1500)
def test_passports(tmp_path, examples):
    def check(content: bytes) -> None:
        (tmp_path / "a.passport.json").write_bytes(content)
        read_passport(tmp_path / "a.passport.json")

    fuzz(check, text_files(PASSPORT), examples)


# Weight files and checkpoints.
STATE = {"conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2), "bn.count": torch.tensor(7)}


@pytest.fixture(params=["zip", "legacy", "safetensors"])
def weight_file(request, tmp_path) -> Path:
    path = tmp_path / ("a.safetensors" if request.param == "safetensors" else "a.pth")
    if request.param == "safetensors":
        save_file(STATE, path)
    else:
        content = {"model": STATE, "epoch": 3, "best": np.float64(3.5)}
        torch.save(content, path, _use_new_zipfile_serialization=request.param == "zip")
    return path


@quick_and_long(30, 800)
def test_weight_files(weight_file, examples):
    def check(content: bytes) -> None:
        weight_file.write_bytes(content)
        read_content(weight_file)

    fuzz(check, damaged(weight_file.read_bytes()) | JUNK, examples)


@quick_and_long(80, 2000)
def test_run_checkpoints(tmp_path, examples):
    """A damaged one is not believed, and the one before it is."""
    older, newer = ({"w": torch.full((3, 2), step)} for step in (1.0, 2.0))
    for step, tensors in ((1, older), (2, newer)):
        save_checkpoint(tmp_path, step, Checkpoint(tensors, {"step": step, "history": [{"a": 1}]}))
    path = tmp_path / "checkpoint-000000002.safetensors"
    whole = path.read_bytes()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        found, refused = load_checkpoint(tmp_path)
        assert found is not None
        assert refused in ([], [path])
        kept = older if refused else newer
        assert found.tensors.keys() == kept.keys()
        assert torch.equal(found.tensors["w"], kept["w"])
        assert found.state["step"] == (1 if refused else 2)

    fuzz(check, damaged(whole) | JUNK, examples)


def parquet_file(labels: list[int | None], path: str | None = None) -> bytes:
    """A shard in the Hub's layout with a small PNG a row."""
    image = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(image, "PNG")
    rows = [{"bytes": image.getvalue(), "path": path} for _ in labels]
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": rows, "label": labels}), sink)
    return sink.getvalue()


@quick_and_long(40, 800)
def test_parquet(tmp_path, examples):
    whole = parquet_file([0, 1, 2, 0, 1, 2])
    path = tmp_path / "train-00000-of-00001.parquet"
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(whole)
    build = {"root": str(tmp_path), "test_split": None, "label_column": None, "image_size": 8}
    build |= {"max_gib": 1.0, "mean": [0.5] * 3, "std": [0.2] * 3, "pad": 1, "flip": True}

    def check(content: bytes) -> None:
        path.write_bytes(content)
        parquet(**build, val_split=0)

    fuzz(check, damaged(whole) | damaged(parquet_file([0, None])) | JUNK, examples)


@quick_and_long(40, 800)
def test_copies_of_parquet(tmp_path, examples):
    path = tmp_path / "train.parquet"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        index = pack(path, tmp_path / "train.pack")
        assert len("\n".join(index.names).split("\n")) == len(index.names) == len(index.labels)

    fuzz(check, damaged(parquet_file([0, 1, 2], "a/b.png")) | JUNK, examples)


@quick_and_long(80, 2000)
def test_tar_shards_and_their_indexes(tmp_path, examples):
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.jpg", "a.cls", "b" * 120 + ".jpg", "b" * 120 + ".json"):
            content = b'{"label": 1}' if name.endswith("json") else b"1"
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    whole = path.read_bytes()
    kept = index_path(path, tmp_path)
    index = index_tar(path)
    write_index(index, facts_of(path), kept)
    content = kept.read_bytes()

    def check_index(content: bytes) -> None:
        kept.write_bytes(content)
        found = read_index(path, "tar", tmp_path)
        assert found is None or all(map(np.array_equal, found, index))

    def check_tar(content: bytes) -> None:
        path.write_bytes(content)
        index_tar(path)

    fuzz(check_index, damaged(content) | JUNK, examples)
    fuzz(check_tar, damaged(whole) | JUNK, examples)
