"""Torn and bit-flipped files: each is noticed, and none is believed."""

import shutil
from pathlib import Path
from random import Random

from chaos.arena import DAMAGES, Arena, Fault, flip, tear
from chaos.compare import metrics
from chaos.ground import Ground
from kdbench.records.checkpoint import checkpoint_paths
from kdbench.records.passport import beside
from kdbench.records.record import RECORD_FILE
from kdbench.records.weights import STUDENT_FILE
from kdbench.tracking.run_logger import METRICS_FILE

TIMES = 3  # each kind of damage to each kind of file


def checkpoints(ground: Ground) -> Fault:
    """The newest one, or both."""
    arena = Arena(ground, "checkpoints")
    for damage in DAMAGES * TIMES:
        for count in (1, 2):
            arena.tried += 1
            arena.kill_at(5)
            for path in checkpoint_paths(arena.run)[-count:]:
                damage(path, arena.draw)
            result = arena.train()
            said = result.out.count("is damaged and is not used")
            arena.expect(said == count or damage is flip, f"{count} torn, {said} named")
            arena.ends_same(result)
            shutil.rmtree(arena.run)
    outcome = "left aside by name; the run went on from the one before, or from the start"
    return arena.verdict("checkpoint torn or with a flipped bit: the newest, or both", outcome)


def tables(ground: Ground) -> Fault:
    """The output caches of teachers."""
    arena = Arena(ground, "tables")
    for damage in DAMAGES * TIMES:
        for name in ("rows", "table.json"):
            arena.tried += 1
            arena.kill_at(5, "kd", "table")
            (path,) = arena.runs.glob(f".tables/*/{name}")
            if damage is flip and name == "rows":
                spoil_rows(path, arena.draw)
            else:
                damage(path, arena.draw)
            result = arena.train("kd", "table")
            if "remove the folder" in result.err:  # the flipped bit is in a fact, and says so
                arena.refused(result, "is the output cache of another")
                shutil.rmtree(path.parent)
                result = arena.train("kd", "table")
            arena.ends_same(result, "kd")
            shutil.rmtree(arena.run)
    outcome = "its rows were computed anew; a table that says to be another's is refused in a line"
    return arena.verdict("teacher table torn or with flipped bits", outcome)


def spoil_rows(path: Path, draw: Random) -> None:
    """Flip a bit in every part of the file that was written."""
    content = bytearray(path.read_bytes())
    for place in range(len(content)):
        if content[place] and draw.random() < 0.02:
            content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def records(ground: Ground) -> Fault:
    """A finished run's."""
    arena = Arena(ground, "records")
    arena.ends_same(arena.train())
    path = arena.run / RECORD_FILE
    whole = path.read_bytes()
    for damage in DAMAGES * TIMES * 2:
        arena.tried += 1
        damage(path, arena.draw)
        for result in (arena.train(), ground.command("table", str(arena.runs))):
            arena.refused(result, RECORD_FILE)
        path.write_bytes(whole)
    path.unlink()
    arena.ends_same(arena.train())
    outcome = "refused in one line by training and tables; removed, the run was made again"
    return arena.verdict("record torn or with a flipped bit", outcome)


def curves(ground: Ground) -> Fault:
    """`metrics.jsonl`, of a run that goes on and of one that is done."""
    arena = Arena(ground, "metrics")
    for damage in DAMAGES * TIMES:
        arena.tried += 1
        arena.kill_at(5)
        damage(arena.run / METRICS_FILE, arena.draw)
        arena.ends_same(arena.train())
        path = arena.run / METRICS_FILE
        whole, rows = path.read_bytes(), metrics(arena.run)
        damage(path, arena.draw)
        sent = ground.command("sync", str(arena.runs), "--dir", str(arena.folder / "sync"))
        arena.refused(sent, METRICS_FILE)
        path.write_bytes(whole)
        arena.expect(metrics(arena.run) == rows, "the rows changed")
        shutil.rmtree(arena.run)
    outcome = "written again from the checkpoint; of a run that is done, kdbench-sync refuses it"
    return arena.verdict("metrics.jsonl torn or with a flipped bit", outcome)


def teachers(ground: Ground) -> Fault:
    """A teacher's weights and passport."""
    arena = Arena(ground, "teachers")
    kept = ground.teacher("resnet14")
    for damage in DAMAGES * TIMES:
        arena.tried += 1
        teacher = arena.folder / "teacher"
        shutil.copytree(kept, teacher)
        damage(teacher / STUDENT_FILE, arena.draw)
        settings = [
            *arena.arguments("kd"),
            f"teacher.resnet14.checkpoint={teacher}",
            "teacher.resnet14.allow_chance=true",
        ]
        arena.refused(ground.command("train", *settings), "teacher")
        shutil.copy(kept / STUDENT_FILE, teacher / STUDENT_FILE)
        tear(beside(teacher / STUDENT_FILE), arena.draw)
        arena.refused(ground.command("train", *settings), "passport")
        shutil.rmtree(teacher)
    arena.expect(not list(arena.runs.glob("*-s*-*")), "something was trained")
    outcome = "refused in one line before anything was trained"
    return arena.verdict("teacher's weights torn or with a flipped bit, its passport torn", outcome)
