"""Nothing of Hydra's own node runs, imports, writes or moves: it is refused before Hydra acts."""

import pickle
import sys
from pathlib import Path

import pytest

from kdbench.config.hydra_cli import compose_jobs
from kdbench.errors import ConfigError

SMALL = ["dataset=synthetic", "dataset.num_train=40", "dataset.num_test=20", "runtime=cpu"]
SMALL += ["schedule.epochs=1", "schedule.milestones=[]"]
CANARY = Path("executed")


class RunsCode:
    def __reduce__(self):
        return Path.touch, (CANARY,)


def experiment(name: str, content: str) -> list[str]:
    """The arguments of a command with a file of someone else."""
    folder = Path("foreign", "experiments")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(f"# @package _global_\n{content}\n")
    return [f"+experiments={name}", "--config-dir", "foreign"]


HANDLER = "{version: 1, handlers: {h: {class: %s, %s}}, root: {handlers: [h]}}"
TWO_FACES = "evil: {app: logging.NullHandler, cli: torch.utils.collect_env.run}\n"
BY_NAME = HANDLER % ("'${evil.${hydra.job.name}}'", "command: touch executed")
BY_FOLDER = HANDLER % ("'${evil.${oc.select:hydra.runtime.output_dir}}'", "command: x")
WRITES = HANDLER % ("logging.FileHandler", "filename: executed")


@pytest.mark.parametrize(
    "content",
    [
        f"{TWO_FACES}hydra: {{job_logging: {BY_NAME}}}",
        f"{TWO_FACES}hydra: {{hydra_logging: {BY_NAME}}}",
        f"{TWO_FACES}hydra: {{job_logging: {BY_FOLDER}}}",
        f"hydra: {{job_logging: {WRITES}}}",
        "hydra: {run: {dir: executed}}",
        "hydra: {run: {dir: '${hydra.job.name}'}}",
        "hydra: {sweep: {dir: executed, subdir: x}}",
        "hydra: {output_subdir: executed}",
        "hydra: {job: {chdir: true}}",
        "hydra: {job: {env_copy: [HOME]}}",
        "hydra: {job: {name: x}}",
        "hydra: {verbose: true}",
        "hydra: {verbose: '${now:%Y}'}",
        "hydra: {help: {template: '${oc.env:HOME}'}}",
        "hydra: {searchpath: ['pkg://evilconf']}",
        "hydra: {sweeper: {max_batch_size: 1}}",
        "hydra: {sweeper: {params: {seed: '${oc.env:SEED}'}}}",
        "hydra: {sweeper: {params: {hydra.searchpath: '[pkg://evilconf]'}}, mode: MULTIRUN}",
        "hydra: {launcher: {_target_: hydra_plugins.nothing.Launcher}}",
        "hydra: {launcher: {_target_: '${hydra.job.name}'}}",
        "hydra: {overrides: {hydra: ['hydra.searchpath=[pkg://evilconf]']}, job: {id: x}}",
        "hydra: {callbacks: {x: '${y}'}}",
    ],
)
def test_a_file_sets_nothing_of_hydra_but_a_sweep(command, evilconf, content):
    result = command("train", *SMALL, *experiment("evil", content))
    assert result.code == 2
    assert result.error_line
    assert "hydra" in result.error_line
    assert not CANARY.exists()
    assert not Path("runs").exists()


@pytest.fixture
def evilconf(tmp_path, monkeypatch) -> None:
    """A module that shows that it was imported."""
    monkeypatch.setenv("SEED", "1")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "modules" / "evilconf").mkdir(parents=True)
    code = f"import pathlib; pathlib.Path({str(tmp_path / CANARY)!r}).touch()"
    (tmp_path / "modules" / "evilconf" / "__init__.py").write_text(code)
    yield
    sys.modules.pop("evilconf", None)


@pytest.mark.parametrize(
    "argument",
    [
        "hydra.searchpath=[pkg://evilconf]",
        "++hydra.searchpath=[pkg://evilconf]",
        "hydra.run.dir=executed",
        "hydra.sweep.dir=executed",
        "hydra.job.chdir=true",
        "hydra.output_subdir=executed",
        "hydra.job.name=x",
        "hydra/job_logging=default",
        "hydra.verbose=true",
        "~hydra.job",
        "hydra={searchpath:[pkg://evilconf]}",
        "+hydra.launcher.x=${oc.env:HOME}",
    ],
)
@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_a_command_sets_nothing_of_hydra_but_a_sweep(command, evilconf, argument, mode):
    result = command("train", *SMALL, argument, *mode)
    assert result.code == 2
    assert result.error_line.startswith("hydra")
    assert not CANARY.exists()
    assert not Path("runs").exists()


def test_what_only_looks_at_a_command_imports_nothing_either(evilconf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"hydra\.searchpath is not allowed"):
        compose_jobs("config", [*SMALL, "hydra.searchpath=[pkg://evilconf]"])
    assert not CANARY.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--experimental-rerun", "evil.pickle"],
        ["--experimental-r=evil.pickle"],
        ["--config-path", "pkg://evilconf"],
        ["-cp", "pkg://evilconf"],
        ["--config-name", "evil", "--config-dir", "foreign"],
        ["--shell-completion", "install=bash"],
    ],
)
def test_arguments_of_hydra_that_read_or_import_are_refused(command, evilconf, arguments):
    Path("evil.pickle").write_bytes(pickle.dumps(RunsCode()))
    Path("foreign").mkdir()
    Path("foreign", "evil.yaml").write_text("hydra: {searchpath: ['pkg://evilconf']}\n")
    result = command("train", *arguments)
    assert result.code == 2
    assert "is not allowed" in result.error_line
    assert not CANARY.exists()


def test_every_job_of_a_sweep_is_held_against_it(command):
    """The launcher of the first job would have had the others passed over."""
    cohort = "defaults: [{override /hydra/launcher: cohort}, _self_]\nseed: 0"
    arguments = experiment("good", cohort)
    experiment("evil", f"hydra: {{job_logging: {WRITES}}}")
    arguments[0] = "+experiments=good,evil"
    result = command("train", "-m", *SMALL, *arguments)
    assert result.code == 2
    assert "hydra.job_logging" in result.error_line
    assert not CANARY.exists()
    assert not Path("runs").exists()


def test_hydra_starts_no_job_and_leaves_no_file(command):
    """Its own runs would read the files a second time, and write theirs."""
    result = command("train", "-m", *SMALL, "seed=0,1")
    assert result.code == 0, result.err
    assert {path.name for path in Path("runs").iterdir()} == {
        path.parent.name for path in Path("runs").glob("*/record.json")
    }
    assert len(list(Path("runs").iterdir())) == 2


def test_what_hydra_prints_is_checked_first(command):
    arguments = experiment("evil", f"hydra: {{hydra_logging: {WRITES}}}")
    for flags in (["--help"], ["--cfg", "hydra"], ["--info", "searchpath"]):
        assert command("train", *flags, *arguments).code == 2
    assert not CANARY.exists()
    assert command("train", "--info", "plugins", "--config-dir", "foreign").code == 2
    said = command("train", "--cfg", "job", "--resolve", "method=kd", "teacher=resnet8").out
    assert "seed: 0\n" in said
    assert "hydra" not in said
    assert command("train", "--cfg", "job", "-p", "seed", "seed=3").out == "3\n"
    assert command("train", "--cfg", "hydra").out.startswith("hydra:\n")
