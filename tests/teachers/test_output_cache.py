"""The output cache: what it keeps, and what it refuses to believe."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

import kdbench.teachers.output_cache
from kdbench.errors import KdbenchError
from kdbench.system.disk import check_room
from kdbench.teachers.output_cache import OutputCache, bytes_touched

IMAGES, VIEWS, WIDTH = 50, 9, 7
FACTS = {"teacher": "abc", "views": {"pad": 1, "flip": False}, "dtype": "float32"}
INDEX = np.arange(IMAGES)
VIEW = INDEX % VIEWS


def cache(root: Path, **facts) -> OutputCache:
    return OutputCache(root, FACTS | facts, IMAGES, VIEWS, WIDTH)


def outputs(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(IMAGES, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("free", [None, 0])
def test_keeps_what_was_written_and_knows_what_was_not(tmp_path, monkeypatch, free):
    """Also on a full disk, where rows are read one by one."""
    if free is not None:
        monkeypatch.setattr(kdbench.teachers.output_cache, "free_bytes", lambda folder: free)
    rows = cache(tmp_path)
    assert not rows.read(INDEX, VIEW)[1].any()
    rows.write(INDEX[::2], VIEW[::2], outputs()[::2])
    found, holds = cache(tmp_path).read(INDEX, VIEW)  # as another process would open it
    assert (holds == (INDEX % 2 == 0)).all()
    assert (found[::2] == outputs()[::2]).all()
    assert not rows.read(INDEX, (VIEW + 1) % VIEWS)[1].any()


def test_a_row_of_zeros_is_a_row_too(tmp_path):
    rows = cache(tmp_path)
    rows.write(INDEX, VIEW, np.zeros((IMAGES, WIDTH), np.float32))
    assert rows.read(INDEX, VIEW)[1].all()


def test_half_precision_keeps_rounded_outputs(tmp_path):
    rows = cache(tmp_path, dtype="float16")
    rows.write(INDEX, VIEW, outputs())
    found, holds = rows.read(INDEX, VIEW)
    assert holds.all()
    assert (found == outputs().astype(np.float16)).all()


def test_every_flipped_bit_is_noticed(tmp_path):
    rows = cache(tmp_path)
    rows.write(INDEX, VIEW, outputs())
    path = rows.folder / "rows"
    row = bytearray(path.read_bytes())
    size, place = rows.row_bytes, (3 * VIEWS + VIEW[3])
    for bit in range(8 * size):
        torn = bytearray(row)
        torn[place * size + bit // 8] ^= 1 << bit % 8
        path.write_bytes(torn)
        holds = cache(tmp_path).read(INDEX, VIEW)[1]
        assert not holds[3], bit
        assert holds.sum() == IMAGES - 1, bit


def test_a_row_in_another_rows_place_is_noticed(tmp_path):
    rows = cache(tmp_path)
    rows.write(INDEX, VIEW, outputs())
    content = np.memmap(rows.folder / "rows", np.uint8, "r+", shape=rows._rows.shape)
    content[0 * VIEWS + VIEW[0]] = content[1 * VIEWS + VIEW[1]]
    assert not rows.read(INDEX, VIEW)[1][0]


def test_a_torn_file_is_filled_again(tmp_path):
    rows = cache(tmp_path)
    rows.write(INDEX, VIEW, outputs())
    path = rows.folder / "rows"
    del rows
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (path.parent / "table.json").write_text('{"teacher": ')
    again = cache(tmp_path)
    holds = again.read(INDEX, VIEW)[1]
    assert 0 < holds.sum() < IMAGES
    again.write(INDEX[~holds], VIEW[~holds], outputs()[~holds])
    found, holds = again.read(INDEX, VIEW)
    assert holds.all()
    assert (found == outputs()).all()


@pytest.mark.parametrize("key", ["teacher", "views", "dtype"])
def test_the_table_of_something_else_is_refused_by_name(tmp_path, key):
    folder = cache(tmp_path).folder
    facts = json.loads((folder / "table.json").read_text()) | {key: "another"}
    (folder / "table.json").write_text(json.dumps(facts))
    with pytest.raises(KdbenchError, match=f"is the output cache of another {key} .another"):
        cache(tmp_path)


def _write(root: Path, seed: int) -> None:
    rows = cache(root)
    for _ in range(20):
        rows.write(INDEX, VIEW, outputs(seed))


def test_two_processes_that_fill_leave_whole_rows(tmp_path):
    """Whatever they interleave, a row that holds is one of theirs."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(tmp_path, seed)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found, holds = cache(tmp_path).read(INDEX, VIEW)
    whole = [(found == outputs(seed)).all(axis=1) for seed in (1, 2)]
    assert (whole[0] | whole[1])[holds].all()


def test_a_small_disk_is_noticed_before_filling(tmp_path):
    assert bytes_touched(50_000, 162, 408, 240) == pytest.approx(50_000 * 162 * 408, rel=0.05)
    assert bytes_touched(50_000, 162, 408, 1) == 50_000 * 4096
    asked = "the table", "set runtime.teacher=live"
    check_room(tmp_path, 1, *asked)
    with pytest.raises(KdbenchError, match=r"needs 1000000.0 GB in .* set runtime.teacher=live"):
        check_room(tmp_path, 10**15, *asked)


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KdbenchError, match=r"cannot keep the output cache in .* make room, or set"):
        cache(tmp_path / "file")
