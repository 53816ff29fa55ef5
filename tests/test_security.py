"""Nothing that is configured, downloaded or sent in by others runs code or tells a secret."""

import ast
import io
import os
import pickle
import subprocess
import tarfile
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wandb
from PIL import Image
from torchvision.datasets import CIFAR10

from kdbench.assembly.make import make
from kdbench.config.hydra_cli import compose_jobs
from kdbench.config.run_config import check_train
from kdbench.data.decoding.decode import decode_into
from kdbench.data.memory.torchvision_sets import cifar10
from kdbench.errors import ConfigError, KdbenchError
from kdbench.ledger.formats import render
from kdbench.ledger.ledger import open_ledger, tables
from kdbench.ledger.results_folder import take
from kdbench.records.identity import Identity
from kdbench.records.reading import record_of
from kdbench.records.weight_files import read_content
from kdbench.schema import secrets
from kdbench.system.files import LARGEST
from kdbench.tracking.wandb_mirror import Mirror, Target
from support.commands import ROOT, compose_method
from support.hostile import SMALL, placed
from support.records import make_record, write_content

CANARY = Path("executed")
TOUCH = f"touch {CANARY}"

# Each would leave the canary behind, if it were called as it stands here.
HOSTILE = [
    {"_target_": "os.system", "command": TOUCH},
    {"_target_": "posix.system", "command": TOUCH},
    {"_target_": "kdbench.config.hydra_cli.os.system", "command": TOUCH},
    {"_target_": "kdbench.config.hydra_cli:os.system", "command": TOUCH},
    {"_target_": "subprocess.getoutput", "cmd": TOUCH},
    {"_target_": "kdbench.sweeps.local.subprocess.getoutput", "cmd": TOUCH},
    {"_target_": "builtins.eval", "_args_": [f"__import__('os').system('{TOUCH}')"]},
    {
        "_target_": "kdbench.records.weight_files.pickle.loads",
        "_args_": [b"cos\nsystem\n(S'touch executed'\ntR."],
    },
    {"_target_": "torch.load", "f": "evil.pth", "weights_only": False},
    {"_target_": "kdbench.records.weight_files.torch.load", "f": "evil.pth", "weights_only": False},
    {
        "_target_": "pathlib.Path.touch",
        "_args_": [{"_target_": "pathlib.Path", "_args_": [CANARY]}],
    },
    {"_target_": "kdbench.records.weights.Path.touch", "_args_": [CANARY]},
    {
        "_target_": "hydra.utils.instantiate",
        "config": {"_target_": "os.mkdir", "path": str(CANARY)},
    },
    {
        "_target_": "kdbench.assembly.build.instantiate",
        "config": {"_target_": "os.mkdir", "path": str(CANARY)},
    },
    {
        "_target_": "kdbench.assembly.make.make",
        "node": {"_target_": "os.mkdir", "path": str(CANARY)},
    },
    {"_target_": "logging.FileHandler", "filename": str(CANARY)},
    {"_target_": ["os.system"], "command": TOUCH},
    {"_target_": "kdbench."},
]
# Code of this package that no key of a configuration stands for.
OWN = [
    {"_target_": "kdbench.system.files.write_atomically", "path": CANARY, "content": b"x"},
    {"_target_": "kdbench.records.passport.write_passport", "passport": {}, "path": str(CANARY)},
    {"_target_": "kdbench.system.files.make_folder", "folder": CANARY},
    {"_target_": "kdbench.config.hydra_cli.fail", "line": "x", "exit_code": 0},
    {"_target_": "kdbench.report.main"},
    {"_target_": "kdbench.training.together.train", "_partial_": True},
]


@pytest.fixture(scope="module")
def config() -> dict:
    arguments = ["method=ea_kd", "teacher=resnet8", "student=torchvision", "student.model=resnet18"]
    (job,) = compose_jobs("config", [*SMALL, *arguments])
    check_train(job)
    return job


PLACES = [
    *("method", "student", "dataset", "schedule", "runtime", "logger", "seed", "runs_dir"),
    *("method.inner", "method.inner.temperature", "schedule.lr", "schedule.milestones"),
    *("student.taps", "student.taps.stage1", "student.model", "dataset.mean", "runtime.table_dir"),
    *("teacher", "teacher.resnet8", "teacher.resnet8.network", "teacher.resnet8.checkpoint"),
    *("teacher.resnet8.passport", "teacher.resnet8.passport.mean", "teacher.resnet8.network.x"),
]


@pytest.mark.parametrize("place", PLACES)
def test_no_configuration_names_code_to_run(config, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(RunsCode(), "evil.pth")
    for hostile in HOSTILE + OWN:
        for node in (hostile, {**hostile, "name": "x"}, [hostile]):
            with pytest.raises(ConfigError) as caught:
                check_train(placed(config, place, node))
            assert "\n" not in str(caught.value)
    assert not CANARY.exists()


@pytest.mark.parametrize("word", ["_partial_", "_args_", "_recursive_", "_convert_"])
@pytest.mark.parametrize("place", ["method", "method.inner", "student", "student.taps", "dataset"])
def test_words_of_hydra_are_no_settings(config, place, word):
    with pytest.raises(ConfigError, match=word):
        check_train(placed(config, f"{place}.{word}", "x"))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_was_not_checked_is_not_built_either(hostile, tmp_path, monkeypatch):
    """Workers of a sweep read checked configurations from files."""
    monkeypatch.chdir(tmp_path)
    kd = compose_method("kd")
    for node in (hostile, {**kd, "temperature": hostile}, {**kd, "x": [[{"y": hostile}]]}):
        with pytest.raises(KdbenchError):
            make(node)
    assert not CANARY.exists()


@pytest.mark.parametrize(
    "argument",
    [
        "method._target_=os.system",
        "+method.x={_target_:os.mkdir,path:executed}",
        "++student.taps={_target_:logging.FileHandler,filename:executed}",
        "+hydra.callbacks.x={_target_:logging.FileHandler,filename:executed}",
        "+hydra.callbacks={x:{_target_:os.mkdir,path:executed}}",
        "+hydra.job.env_set={GIT_CONFIG_COUNT:'1',GIT_CONFIG_KEY_0:core.fsmonitor,"
        "GIT_CONFIG_VALUE_0:'touch executed'}",
        "+hydra.sweeper.x={_target_:os.mkdir,path:executed}",
        "+hydra.launcher.x.y=[{_target_:os.mkdir,path:executed}]",
        "hydra.launcher._target_=os.mkdir",
        "+hydra.launcher.ray.x={_target_:os.mkdir,path:executed}",
        "method=${oc.env:METHOD}",
        "method._target_=${oc.env:METHOD}",
    ],
)
def test_a_hostile_command_is_one_line(command, monkeypatch, argument):
    monkeypatch.setenv("METHOD", "os.system")
    launcher = ["hydra/launcher=cohort"] if "launcher" in argument else []
    result = command("train", *SMALL, *launcher, argument, *(["-m"] if launcher else []))
    assert result.code == 2
    assert result.error_line
    assert not CANARY.exists()


@pytest.mark.parametrize(
    "hydra",
    [
        "callbacks: {x: {_target_: logging.FileHandler, filename: executed}}",
        "callbacks: {x: {_target_: os.mkdir, path: executed}}",
        "sweeper: {params: {seed: {_target_: os.mkdir, path: executed}}}",
        "job: {env_set: {LD_PRELOAD: ./evil.so}}",
        "job_logging: {version: 1, disable_existing_loggers: false, handlers: "
        "{x: {(): os.mkdir, path: executed}}, root: {handlers: [x]}}",
        "job_logging: {version: 1, handlers: {x: {class: tempfile.TemporaryDirectory}}}",
        "job_logging: {version: 1, handlers: {x: {class: logging.FileHandler, mode: 7}}, "
        "root: {handlers: [x]}}",
        "launcher: {x: [{_target_: os.mkdir, path: executed}]}",
        "job_logging: {version: 1, formatters: {x: {class: logging.os.execl, format: /bin/sh, "
        "datefmt: sh, style: -c, validate: touch executed}}, handlers: {h: {class: "
        "logging.StreamHandler, formatter: x}}, root: {handlers: [h]}}",
        "job_logging: {version: 1, handlers: {h: {class: logging.StreamHandler, stream: "
        "ext://executed.x}}}",
        "{launcher: !!python/object/apply:os.system [touch executed]}",
        "hydra_logging: {version: 1, disable_existing_loggers: false, handlers: "
        "{x: {(): subprocess.getoutput, cmd: touch executed}}, root: {handlers: [x]}}",
    ],
)
def test_an_experiment_file_of_someone_else_runs_nothing(command, hydra):
    folder = Path("foreign") / "experiments"
    folder.mkdir(parents=True)
    (folder / "evil.yaml").write_text(f"# @package _global_\nhydra:\n  {hydra}\n")
    result = command("train", *SMALL, "+experiments=evil", "--config-dir", "foreign")
    assert result.code == 2
    assert result.error_line
    assert not CANARY.exists()


def test_no_later_job_of_a_sweep_brings_its_own_logging(command):
    """Hydra sets logging up for each job anew."""
    folder = Path("foreign") / "experiments"
    folder.mkdir(parents=True)
    logging = "{version: 1, handlers: {x: {(): os.mkdir, path: executed}}, root: {handlers: [x]}}"
    evil = f"# @package _global_\nhydra:\n  job_logging: {logging}\n"
    (folder / "good.yaml").write_text("# @package _global_\nseed: 0\n")
    (folder / "evil.yaml").write_text(evil)
    given = ["-m", *SMALL, "+experiments=good,evil", "seed=1,2", "--config-dir", "foreign"]
    result = command("train", *given)
    assert result.code == 2
    assert "hydra.job_logging.root.handlers is not allowed" in result.error_line
    assert not CANARY.exists()
    assert not Path("runs").exists(), "said before anything is trained"


class RunsCode:
    def __reduce__(self):
        return os.system, (TOUCH,)


class Evaluates:
    def __reduce__(self):
        return eval, (f"__import__('pathlib').Path('{CANARY}').touch()",)


class Rebuilds:
    """Code in what a tensor of the file is made with."""

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (RunsCode(), 0, (1,), (1,), False, {})


def numpy_object() -> object:
    return np.array([RunsCode()], dtype=object)


CARRIERS = {
    "beside": lambda evil: {"model": {"w": torch.zeros(1)}, "extra": evil},
    "inside": lambda evil: {"model": {"w": torch.zeros(1), "x": [(evil,)]}},
    "as a key": lambda evil: {"model": {"w": torch.zeros(1)}, "extra": {"k": (evil, {1: evil})}},
    "alone": lambda evil: evil,
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("evil", [RunsCode, Evaluates, Rebuilds, numpy_object])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_checkpoint_never_runs(tmp_path, monkeypatch, carrier, evil, form):
    monkeypatch.chdir(tmp_path)
    content, path = CARRIERS[carrier](evil()), tmp_path / "teacher.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(KdbenchError) as caught:
        read_content(path)
    assert "\n" not in str(caught.value)
    assert not CANARY.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(S'touch executed'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntRcos\nsystem\n"
        b"(S'touch executed'\ntRtR.",
        b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR"
        b"S\"cos\\nsystem\\n(S'touch executed'\\ntR.\"\ntR.",  # an object scalar is a pickle itself
        b"cnumpy\nndarray\n(I1\ntR(dS'x'\ncos\nsystem\n(S'touch executed'\ntRsb.",
        b"cargparse\nNamespace\n)R(dS'x'\ncos\nsystem\n(S'touch executed'\ntRsb.",
        b"ctorch\nload\n(S'evil.pth'\ntR.",
        b'cbuiltins\nexec\n(S\'open("executed","w")\'\ntR.',
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "bare"])
def test_hand_made_pickles_never_run(tmp_path, monkeypatch, code, zipped):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "teacher.pth"
    path.write_bytes(b"\x80\x02" + code)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("teacher/data.pkl", b"\x80\x02" + code)
            archive.writestr("teacher/version", "3\n")
            archive.writestr("teacher/byteorder", "little")
    with pytest.raises(KdbenchError) as caught:
        read_content(path)
    assert "\n" not in str(caught.value)
    assert not CANARY.exists()


SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_canary0canary0canary0",
    "MY_PASSWORD": "correct horse",
}


@pytest.fixture
def environment(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def leaks(folder: Path) -> list[str]:
    return [
        f"{name} in {path}"
        for path in folder.rglob("*")
        if path.is_file()
        for name, value in SECRETS.items()
        if value.encode() in path.read_bytes()
    ]


def test_secrets_of_the_environment_reach_no_file(command, environment, tmp_path):
    said = command("train", *SMALL, "schedule=digits", "schedule.epochs=1",
                   "schedule.milestones=[]", "logger=wandb")  # fmt: skip
    assert said.code == 0, said.err
    told = command("table", "runs")
    (results := Path("results/runs")).mkdir(parents=True)
    told_too = command("report", "--take", "runs")
    assert told.code == told_too.code == 0
    assert list(results.iterdir())
    assert list(Path("runs").rglob("*.wandb"))
    assert leaks(tmp_path) == []
    for value in SECRETS.values():
        assert not any(value in text for result in (said, told, told_too) for text in result[1:])


@pytest.mark.parametrize(
    "argument",
    [
        "logger={name:x,_target_:kdbench.tracking.wandb_mirror.WandbLogger,entity:${oc.env:WANDB_API_KEY}}",
        "runs_dir=runs/${oc.env:HF_TOKEN}",
        "method.name=${oc.env:MY_PASSWORD}",
        "seed=${oc.env:HF_TOKEN}",
        "seed=${oc.decode:${oc.env:MY_PASSWORD}}",
        "+x.${oc.env:HF_TOKEN}=1",
        f"method.name={SECRETS['HF_TOKEN']}",
        f"student={SECRETS['HF_TOKEN']}",
        f"'{SECRETS['MY_PASSWORD']}'=3",
        "hydra.job_logging={version:1,formatters:{x:{format:${oc.env:HF_TOKEN}}}}",
    ],
)
def test_a_secret_in_a_setting_is_refused_and_not_repeated(command, environment, argument):
    result = command("train", *SMALL, argument)
    assert result.code == 2
    assert result.error_line
    assert not any(value in result.out + result.err for value in SECRETS.values())
    assert not Path("runs").exists()


def test_what_counts_as_a_secret(monkeypatch):
    for name in (
        "API_KEY",
        "token",
        "DB_PASSWORD",
        "AWS_KEY_ID",
        "PATH",
        "MONKEY",
        "KEYBOARD",
        "SHORT_KEY",
    ):
        monkeypatch.setenv(name, "short" if name == "SHORT_KEY" else f"value of {name}")
    names = set(secrets.secrets())
    assert {"API_KEY", "token", "DB_PASSWORD", "AWS_KEY_ID"} <= names
    assert not {"PATH", "MONKEY", "KEYBOARD", "SHORT_KEY"} & names
    assert secrets.masked("a value of token.") == "a <token>."


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder on this machine, and where it is served."""
    (folder := tmp_path / "server").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        Thread(target=serving.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_an_archive_that_is_not_the_known_one_is_not_unpacked(server, tmp_path, monkeypatch):
    folder, url = server
    (root := tmp_path / "data").mkdir()
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as tar:
        for name in ("../escaped", str(tmp_path / "absolute"), "cifar-10-batches-py/test_batch"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
    monkeypatch.setattr(CIFAR10, "url", f"{url}/cifar.tar.gz")
    with pytest.raises(KdbenchError, match="cannot download") as caught:
        cifar10(str(root), True, [0.5] * 3, [0.25] * 3, 4, True, 0)
    assert "\n" not in str(caught.value)
    assert (root / CIFAR10.filename).is_file(), "it was fetched"
    assert {path.name for path in tmp_path.iterdir()} == {"server", "data"}
    assert not (root / CIFAR10.base_folder).exists()


@pytest.mark.parametrize("cell", ["../../escaped", "/tmp/escaped", "a/b", "a\nb", "a\\b"])
def test_a_record_names_no_file_elsewhere(tmp_path, cell):
    record = make_record(cell=cell)
    record["run_id"] = f"{cell}-s{record['seed']}-{record['hash']}"
    (tmp_path / "runs" / "one").mkdir(parents=True)
    write_content(record, tmp_path / "runs" / "one" / "record.json")
    (tmp_path / "results" / "runs").mkdir(parents=True)
    changed, problems = take(tmp_path / "runs", tmp_path / "results")
    assert (changed, len(problems)) == (0, 1)
    assert "is not a record" in problems[0]
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "results"}


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    """PyTorch writes none, and 5 MB of one are 1 GB of memory."""
    torch.save({"w": torch.zeros(1000)}, tmp_path / "stored.pth")
    assert read_content(tmp_path / "stored.pth")["w"].shape == (1000,)
    stored = zipfile.ZipFile(tmp_path / "stored.pth")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb, stored:
        for name in stored.namelist():
            bomb.writestr(name, stored.read(name))
    with pytest.raises(KdbenchError, match=r"is refused.*compressed"):
        read_content(tmp_path / "bomb.pth")


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    (folder := tmp_path / "run").mkdir()
    os.mkfifo(folder / "record.json")
    os.mkfifo(tmp_path / "image.jpg")
    (problem,) = open_ledger([tmp_path], None).problems
    assert "is not a record" in problem
    with pytest.raises(KdbenchError, match="not a regular file"):
        decode_into(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [tmp_path / "image.jpg"], ["x"])
    (folder / "record.json").unlink()
    with (folder / "record.json").open("wb") as file:
        file.truncate(LARGEST + 1)
    assert len(open_ledger([tmp_path], None).problems) == 1


def test_an_image_of_too_many_pixels_is_not_decoded():
    image = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(image, "PNG")  # 12 kB; 300 MB in RGB
    with pytest.raises(KdbenchError, match="could be decompression bomb"):
        decode_into(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [image.getvalue()], ["x"])


@pytest.mark.parametrize("odd", ["\x1b]0;x\x07", "\u202e", "\x9b31m"])
def test_names_do_not_steer_a_terminal(command, tmp_path, odd):
    (tmp_path / "run").mkdir()
    write_content(make_record(f"kd{odd}"), tmp_path / "run" / "record.json")
    (problem,) = open_ledger([tmp_path], None).problems
    assert "is not a record" in problem
    for argument in (f"method.name='{odd}'", f"+x{odd}=1"):
        result = command("train", *SMALL, argument)
        assert result.code == 2
        assert odd[0] not in result.error_line


def test_names_that_no_folder_can_have_are_refused_before_training(command):
    assert (
        "is too long for a folder's name"
        in command("train", *SMALL, "schedule=digits", f"method.name={'x' * 300}").error_line
    )
    assert "cannot name a folder" in command("train", *SMALL, "method.name=''").error_line


def test_a_name_is_no_formula_and_no_column(tmp_path):
    (tmp_path / "run").mkdir()
    record = make_record("=cmd|calc")
    record["config"]["student"]["name"] = r"\input{/etc/passwd}"  # which no folder is called after
    write_content(record, tmp_path / "run" / "record.json")
    made = tables(open_ledger([tmp_path], None))
    assert ",'=cmd|calc," in render(made, "csv")
    assert r"| =cmd\|calc " in render(made, "md")
    assert all(
        line[:1] in "%\\" or "\\input" not in line for line in render(made, "tex").split("\n")
    )


def test_no_file_but_a_run_s_own_is_sent_to_wandb(tmp_path, monkeypatch):
    """A folder of someone else names other files as its weights and its teacher's."""
    (tmp_path / "id_rsa").write_bytes(b"private")
    (folder := tmp_path / "runs" / "one").mkdir(parents=True)
    (folder / "student.safetensors").symlink_to(tmp_path / "id_rsa")
    sent = SimpleNamespace(config={}, summary={}, define_metric=lambda *_, **__: None)
    monkeypatch.setattr(wandb, "init", lambda **_: sent)  # which has no way to send a file
    record = make_record()
    names = Identity(record["cell"], record["hash"], record["seed"])
    whole = record_of(record)
    mirror = Mirror(Target("x", None, "online", tmp_path), names, whole.config, live=False)
    mirror.record(whole, folder, [str(tmp_path / "id_rsa")])
    assert sent.summary["top1_last"] == record["top1_last"]


SHELLS = {"system", "popen", "getoutput", "getstatusoutput", "eval", "exec", "__import__"}
SHELLS |= {name for name in vars(os) if name.startswith(("exec", "spawn"))}


def test_no_source_file_builds_a_shell_or_unpickles():
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            owner = getattr(node.func, "value", None)
            where = f"{path}:{node.lineno}"
            if isinstance(node.func, ast.Name):
                assert node.func.id not in SHELLS, where
            elif isinstance(owner, ast.Name):
                assert not (owner.id in ("os", "subprocess") and name in SHELLS), where
                assert owner.id not in ("pickle", "marshal", "shelve", "dill"), where
                assert not (owner.id == "yaml" and name not in ("safe_load", "safe_dump")), where
                if owner.id == "subprocess":
                    assert not isinstance(node.args[0], ast.Constant | ast.JoinedStr), where
                if (owner.id, name) == ("torch", "load"):
                    words = {word.arg: word.value for word in node.keywords}
                    assert getattr(words.get("weights_only"), "value", None) is True, where
            for word in node.keywords:
                assert word.arg not in ("shell", "allow_pickle", "trust_remote_code"), where


def test_the_canary_works(tmp_path, monkeypatch):
    """What is refused above would leave a trace."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(RunsCode()))
    assert CANARY.exists()
    CANARY.unlink()
    pickle.loads(pickle.dumps(Evaluates()))
    assert CANARY.exists()
    assert subprocess.getoutput("echo on") == "on"
