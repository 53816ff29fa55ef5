"""Random input of the grammars by which code was reached, under a watcher of this process.

As `test_fuzz`: each is a result or one line. Beside that no process is started, nothing outside the
test's folder is written, and nothing waits for a pipe. The long profile is 100,000 inputs.
"""

import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torchvision  # noqa: F401  # it makes torch's cache folder, which is outside the test's
import yaml

from kdbench.assembly.make import make
from kdbench.config.composing import own_node
from kdbench.config.hydra_cli import compose_jobs, run
from kdbench.config.hydra_guard import LAUNCHERS, OPEN, check_called, check_key, leaves
from kdbench.config.kinds import DETECTION, KINDS, group_of
from kdbench.config.run_config import check_train
from kdbench.errors import ConfigError, KdbenchError
from kdbench.records.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from kdbench.records.identity import canonical
from kdbench.records.passport import read_passport
from kdbench.schema.check import RESERVED
from kdbench.system.files import make_folder, own_folder, read_small
from kdbench.system.locks import RunLock
from kdbench.system.private import private_folder
from kdbench.teachers.loading import read_measurement
from kdbench.teachers.output_cache import OutputCache
from kdbench.tracking.run_logger import MetricsFile
from kdbench.tracking.sending import State
from kdbench.tracking.wandb_mirror import Target
from support.fuzzing import VALUES, fuzz, quick_and_long, words
from support.hostile import SMALL, placed, soon
from support.records import record_at

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn")
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.chmod", "os.link")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
OWN = {"__pycache__", ".hypothesis"}  # Python's and the tests'
NULL = Path(os.devnull)
watched: list[Path] = []  # the test's folder, while one is watched
seen: list[str] = []


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Write down what must not happen, as Python's audit events tell it."""
    if not watched:
        return
    if event in STARTS:
        seen.append(f"{event} {arguments}")
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
    if (writes or event in CHANGES) and isinstance(arguments[0], str | bytes | Path):
        path = Path(os.fsdecode(arguments[0])).absolute()
        if not (path.is_relative_to(watched[0]) or OWN & {*path.parts} or path == NULL):
            seen.append(f"{event} {path}")


sys.addaudithook(watch)


@pytest.fixture
def watcher(tmp_path, monkeypatch) -> Iterator[Path]:
    """The test's folder; at the end nothing else was touched, and nothing was started."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine" * 40)
    seen.clear()
    watched.append(tmp_path)
    try:
        yield folder
    finally:
        watched.clear()
    assert seen == []
    assert victim.read_bytes() == b"mine" * 40
    assert {path.name for path in tmp_path.iterdir()} == {"here", "victim"}


# Nodes of Hydra, interpolations and targets.

TEXTS = st.sampled_from(
    [
        *words("""${hydra.job.name} ${now:%Y} ${hydra.runtime.output_dir} ${oc.env:HOME} ${x.${y}}
        ${ x ??? os.system logging.FileHandler torch.utils.collect_env.run ext://sys.stdout executed
        ../victim hydra.utils.instantiate pkg://antigravity file:///tmp kd ce [a,b] seed=1 true 1
        None hydra_plugins.x.Y kdbench.sweeps.planning.load"""),
        *(*LAUNCHERS, "touch executed", "", "a\nb", "\0", "\ud800"),
    ]
)
NAMES = st.sampled_from(
    words("""_target_ _args_ _partial_ _convert_ _recursive_ () class handlers formatters root dir
    subdir params launcher sweeper callbacks job job_logging hydra_logging run sweep env_set
    env_copy chdir name output_subdir searchpath mode verbose help overrides runtime size executor
    processes submitit ray address cluster x 0""")
)
NODES = st.recursive(
    TEXTS | VALUES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


def merged(ours: Any, given: Any) -> Any:
    """Ours with what is given, as a file's node is merged."""
    if isinstance(ours, dict) and isinstance(given, dict):
        keys = {**ours, **given}
        return {k: merged(ours[k], given[k]) if k in ours and k in given else keys[k] for k in keys}
    return given


@quick_and_long(200, 40_000)
def test_nodes_of_hydra(watcher, examples):
    ours = own_node("config")

    def check(given: Any) -> None:
        node = merged(ours, given)
        check_called(node, ours)
        assert node["launcher"]["_target_"] in LAUNCHERS
        open_keys = {path.partition(".")[0] for path in OPEN}
        assert {k: v for k, v in node.items() if k not in open_keys} == {
            k: v for k, v in ours.items() if k not in open_keys
        }
        for name in ("launcher", "sweeper", "job"):
            assert not any("${" in text for _, text in leaves(name, node[name])) or name == "job"

    fuzz(check, st.dictionaries(NAMES, NODES, max_size=3) | NODES, examples)


@quick_and_long(100, 10_000)
def test_keys_of_overrides(watcher, examples):
    def check(parts: list[str]) -> None:
        key = "hydra" + "".join(parts)
        check_key(key)
        ours = ("hydra.mode", "hydra/launcher", "hydra.launcher", "hydra.sweeper.params")
        assert key.startswith(ours) or not (key == "hydra" or key.startswith(("hydra.", "hydra/")))

    parts = st.sampled_from(["", ".", "/", "@", "."]) | NAMES | TEXTS
    fuzz(check, st.lists(parts, max_size=4), examples)


@quick_and_long(15, 1000)
def test_files_of_someone_else(watcher, monkeypatch, capsys, examples):
    """Whole commands, up to where they would train."""
    folder = Path("foreign", "experiments")
    folder.mkdir(parents=True)

    def check(tree: dict[str, Any]) -> None:
        text = yaml.safe_dump(json.loads(json.dumps(tree)), allow_unicode=False)
        (folder / "evil.yaml").write_text(f"# @package _global_\n{text}")
        argv = ["kdbench-train", *SMALL, "+experiments=evil", "--config-dir", "foreign"]
        monkeypatch.setattr(sys, "argv", argv)
        code = 0
        try:
            run("config", check_train, lambda config: canonical(config.spelt()))
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr().err.splitlines()
        assert code in (0, 2)
        assert bool(code) == bool(said)
        assert all(line.startswith("kdbench: error: ") for line in said), said
        assert {path.name for path in watcher.iterdir()} == {"foreign"}

    hydra = st.dictionaries(NAMES, NODES, max_size=2).map(lambda node: {"hydra": node})
    other = st.dictionaries(st.sampled_from([*KINDS, "seed", "x"]), NODES, max_size=1)
    fuzz(check, st.builds(lambda a, b: {**a, **b}, hydra, other), examples)


def callables() -> list[str]:
    """Everything that a name of kdbench leads to."""
    return sorted(
        f"{name}.{attribute}"
        for name, module in list(sys.modules.items())
        if name.startswith("kdbench.")
        for attribute in vars(module)
    )


KEYS_OF_RUNS = ("method", "student", "dataset", "schedule", "runtime", "logger", "method.inner")


@quick_and_long(200, 30_000)
def test_targets(watcher, monkeypatch, examples):
    (config,) = compose_jobs("config", [*SMALL, "method=ea_kd", "teacher=resnet8"])
    kinds = {name.rpartition(".")[2] for names in (KINDS, DETECTION) for name in names.values()}

    def check(key: str, target: Any, settings: dict[str, Any], wrap: bool) -> None:
        node = {**settings, "_target_": target, "name": "x"}
        if wrap:
            node = {"a": [node]} | settings
        with suppress(ConfigError):
            check_train(placed(config, key, node))
        made = make(node, None if wrap else group_of(node))
        assert any(kind.__name__ in kinds for kind in type(made).__mro__)

    targets = (
        st.sampled_from(callables())
        | NODES
        | st.sampled_from(callables()).map(lambda name: f"{name}.__init__")
    )
    keys = st.sampled_from([*RESERVED, "node", "path", "folder", "x", "dataset", "seed", "config"])
    cases = st.tuples(
        st.sampled_from(KEYS_OF_RUNS),
        targets,
        st.dictionaries(keys, NODES, max_size=3),
        st.booleans(),
    )
    fuzz(lambda case: check(*case), cases, examples)


# What lies in a folder.

PLACES = [".lock", "metrics.jsonl", "checkpoint-000000002.safetensors", "record.json", "state.json"]
PLACES += ["x.passport.json", ".teachers", "x.json", ".writable", "wandb", "rows", "table.json"]
THINGS = ["link", "dangling", "loop", "pipe", "socket", "folder", "deep", "list", "empty", "locked"]


def put(path: Path, thing: str) -> None:
    """Leave something in the place of a file."""
    if thing in ("link", "dangling", "loop"):
        above = Path.cwd().parent
        names = {"link": above / "victim", "dangling": above / "executed", "loop": path.name}
        path.symlink_to(names[thing])
    elif thing == "pipe":
        os.mkfifo(path)
    elif thing == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(os.path.relpath(path))
    elif thing == "folder":
        path.mkdir()
    else:
        path.write_text({"deep": "[" * 9000, "list": "[1]"}.get(thing, ""))
        path.chmod(0o777 if thing == "locked" else 0o644)


def use(folder: Path) -> Iterator[Any]:
    """What kdbench does in folders of runs, of tables and of its state."""
    target = Target("x", None, "offline", folder)
    index, rows = torch.arange(2).numpy(), torch.zeros(2, 3).numpy()
    yield lambda: make_folder(folder)
    yield lambda: own_folder(folder)
    yield lambda: RunLock(folder).release()
    yield lambda: MetricsFile(folder).epoch({"epoch": 1})
    yield lambda: MetricsFile(folder).start([])
    yield lambda: load_checkpoint(folder)
    yield lambda: save_checkpoint(folder, 2, Checkpoint({"w": torch.ones(1)}, {"step": 2}))
    yield lambda: record_at(folder / "record.json")
    yield lambda: read_passport(folder / "x.passport.json")
    yield lambda: read_measurement(folder / "x.json", 3)
    yield lambda: private_folder(folder, ".teachers")
    yield lambda: State(target).keep("x", "y")
    yield lambda: read_small(folder / "table.json")
    yield lambda: OutputCache(folder, {"dtype": "float32"}, 2, 2, 3).write(index, index, rows)


@quick_and_long(60, 19_000)
def test_what_lies_in_a_folder(watcher, examples):
    table = OutputCache(watcher, {"dtype": "float32"}, 2, 2, 3).folder.name

    def check(case: dict[str, str]) -> None:
        for path in watcher.iterdir():
            path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)
        (watcher / table).mkdir()
        for name, thing in case.items():
            put(watcher / (table if name in ("rows", "table.json") else "") / name, thing)
        for act in use(watcher):
            with soon(), suppress(KdbenchError, OSError, ValueError):
                act()

    cases = st.dictionaries(
        st.sampled_from(PLACES), st.sampled_from(THINGS), min_size=1, max_size=3
    )
    fuzz(check, cases, examples)
