"""Micro-batches, and several processes that share them: one step, whoever computes it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from chaos.compare import differences
from chaos.processes import free_ports
from kdbench.assembly.build import build_method
from kdbench.assembly.method_pages import recipes
from kdbench.config.hydra_cli import print_error
from kdbench.data.augmentation.views import Views
from kdbench.errors import ConfigError, KdbenchError, RankError, WriteError
from kdbench.parallel.micro_batches import Cutting
from kdbench.parallel.ranks import Ranks
from kdbench.parallel.torchrun import Place
from kdbench.records.reproducibility import check_exact
from kdbench.records.settings import TrainSettings
from kdbench.system.console import Console
from kdbench.system.runtime import Runtime
from kdbench.tasks.classification.losses import losses_and_sums
from kdbench.teachers.outputs import wants_cache
from kdbench.training.accumulation import Accumulation
from kdbench.training.cohort import Cohort
from kdbench.training.finish import close_job
from kdbench.training.member import Member
from kdbench.training.optimizer import Optimizer
from kdbench.training.schedule import Schedule
from kdbench.training.snapshot import TrainState
from kdbench.training.step import update
from kdbench.training.together import train, train_together
from kdbench.types import Batch, NetworkProbe, Output, Probe
from support.commands import compose, compose_method
from support.ranks import COHORTS, as_ranks, ended, write_plan
from support.records import record_at
from support.runs import config, same, weights
from support.shapes import make_shapes

# Batches of 24, 24 and 16 images; 510 to score, in two batches that ranks take in turn.
SMALL = [
    *("dataset.num_train=64", "dataset.num_test=510", "schedule.batch_size=24"),
    *("runtime.device=cpu", "runtime.threads=1", "runtime.teacher=live"),
]
# A bank and draws; two buffers; relations between images; an adapter with batch norms. The last one
# diverges.
COHORT = ["crd", "dot", "rkd", "simkd", "kd schedule.lr=1e30"]
TEACHERS = ("resnet14", "wrn_16_1")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cohort(
    runs_dir: str, micro_batches: int, names: list[str], teacher: Path
) -> list[TrainSettings]:
    given = [*SMALL, f"runs_dir={runs_dir}", f"schedule.micro_batches={micro_batches}"]
    given += [
        "teacher=resnet14",
        f"teacher.resnet14.checkpoint={teacher.resolve()}",
        "teacher.resnet14.allow_chance=true",
    ]
    return [config(*given, *f"method={name}".split()) for name in names]


def test_two_ranks_end_with_the_bits_of_one_process():
    """All methods of a cohort, its records included."""
    teacher = train(config(*SMALL, "student=resnet14", "method=ce"))
    write_plan([cohort("two", 2, COHORT, teacher)])
    running = as_ranks(2, "-c", COHORTS, "plan")
    *same, diverged = train_together(cohort("alone", 2, COHORT, teacher))
    for code, _, errors in ended(running):
        assert code == 0, errors
    assert "diverged" in str(diverged)
    for folder in same:
        found = differences(folder, Path("two") / folder.name)
        assert found == ["record: hardware"], (folder.name, found)
    failed = [json.loads(path.read_text()) for path in Path("two").glob("*-kd-*/record.json")]
    assert [(f["status"], f["diverged_step"]) for f in failed] == [("failed", diverged.step)]


@pytest.mark.long
def test_ranks_that_share_more_parts_end_with_the_weights_of_one_process():
    """But for rounding."""
    teacher = train(config(*SMALL, "student=resnet14", "method=ce"))
    given = 3, ["crd schedule.lr=0.001"], teacher
    write_plan([cohort("two", *given)])
    running = as_ranks(2, "-c", COHORTS, "plan")
    (alone,) = train_together(cohort("alone", *given))
    for code, _, errors in ended(running):
        assert code == 0, errors
    expected = load_file(alone / "student.safetensors")
    found = load_file(Path("two") / alone.name / "student.safetensors")
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("wanted", [0, 1, None])  # how many teachers they read; None: any number
def test_so_does_every_method(wanted):
    counts = {name: build_method(compose_method(name), 0).num_teachers for name in recipes()}
    names = [name for name, count in counts.items() if count == wanted]
    paths = {name: train(config(*SMALL, f"student={name}")) for name in TEACHERS[:wanted]}
    given = [*SMALL, f"teacher=[{','.join(paths)}]"] if paths else SMALL
    given = [
        *given,
        *(f"teacher.{name}.checkpoint={path.resolve()}" for name, path in paths.items()),
        *(f"teacher.{name}.allow_chance=true" for name in paths),
    ]
    given = [*given, "schedule.micro_batches=2"]

    def configs(runs_dir: str) -> list[TrainSettings]:
        return [config(*given, f"runs_dir={runs_dir}", f"method={name}") for name in names]

    write_plan([configs("two")])
    running = as_ranks(2, "-c", COHORTS, "plan")
    alone = train_together(configs("alone"))
    for code, _, errors in ended(running):
        assert code == 0, errors
    for folder in alone:
        assert differences(folder, Path("two") / folder.name) == ["record: hardware"], folder.name


LONG = [
    "schedule.epochs=15",
    "schedule.milestones=[1]",
    "runtime=exact",
    "runtime.checkpoint_steps=2",
]
TRAIN = [
    *SMALL,
    *LONG,
    "dataset=synthetic",
    "dataset.num_test=64",
    "student=resnet8",
    "schedule.micro_batches=2",
]


def wait_for_a_checkpoint(folder: Path, known: Collection[Path] = ()) -> None:
    """Until there is another one: all ranks train."""
    end = time.monotonic() + 120
    while not set(folder.glob("*/checkpoint-*")) - set(known):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize("then", ["the end", "SIGTERM"])
def test_a_lost_rank_ends_the_others_and_all_go_on_from_the_checkpoint(then):
    """SIGKILL of one, SIGTERM of one, then to the end: the bits of one undisturbed process."""
    command = ["-m", "kdbench.train", *TRAIN, "runs_dir=runs"]
    running = as_ranks(2, *command)
    wait_for_a_checkpoint(Path("runs"))
    running[1].kill()
    (code, _, errors), (killed, _, _) = ended(running)
    assert (code, killed) == (1, -signal.SIGKILL)
    assert "rank 0 has lost the others" in errors
    assert len(errors.splitlines()) == 1, errors

    if then == "SIGTERM":
        known = list(Path("runs").glob("*/checkpoint-*"))
        running = as_ranks(2, *command)
        wait_for_a_checkpoint(Path("runs"), known)
        running[1].terminate()
        (code, _, errors), (other, _, nothing) = ended(running)
        assert (code, other) == (130, 130)
        assert errors.startswith("kdbench: error: stopped in epoch"), errors
        assert nothing == ""

    running = as_ranks(2, *command)
    assert "going on after step" in running[0].stdout.readline()
    for code, _, errors in ended(running):
        assert code == 0, errors
    expected = train(config(*TRAIN, "runs_dir=alone"))
    torch.use_deterministic_algorithms(False)
    assert differences(expected, Path("runs") / expected.name) == ["record: hardware"]


@pytest.mark.long
def test_torchrun_starts_a_lost_rank_again_by_itself():
    elastic = ["--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    command = ["-m", "torch.distributed.run", *elastic, "-m", "kdbench.train", *TRAIN]
    with subprocess.Popen(
        [sys.executable, *command, "runs_dir=runs"], stderr=subprocess.PIPE, text=True
    ) as running:
        wait_for_a_checkpoint(Path("runs"))
        children = subprocess.run(
            ["pgrep", "-P", str(running.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        os.kill(int(children[-1]), signal.SIGKILL)
        _, errors = running.communicate(timeout=900)
    assert running.returncode == 0, errors
    assert list(Path("runs").glob("*/record.json"))


@pytest.mark.long
def test_two_ranks_train_and_score_a_detector_as_one_process_does():
    pytest.importorskip("pycocotools", reason="pip install 'kdbench[detection]'")
    root = make_shapes(Path("shapes").resolve(), train=4, val=3)
    given = ["task=detection", f"dataset.root={root}", "runtime=cpu", "runtime.threads=1"]
    given += ["dataset.min_sizes=[64]", "dataset.max_size=64", "schedule.batch_size=2"]
    given += ["student.anchor_sizes=[8,16,32,48,64]", "student.proposals=20"]
    given += ["student.rois_per_image=8", "schedule.steps=2", "schedule.milestones=[]"]
    given += ["schedule.warmup_steps=0", "schedule.micro_batches=2"]
    for code, _, errors in ended(as_ranks(2, "-m", "kdbench.train", *given, "runs_dir=two")):
        assert code == 0, errors
    alone = train(compose(*given, "runs_dir=alone"))
    two = Path("two") / alone.name
    assert same(weights(two), weights(alone))
    found, expected = (record_at(folder / "record.json") for folder in (two, alone))
    assert found["hardware"]["ranks"] == 2
    assert (found["ap_last"], found["curve"]) == (expected["ap_last"], expected["curve"])


def test_ranks_meet_beside_what_dead_ones_have_left():
    store = dist.HashStore()
    words = []
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            found = [pool.submit(Ranks(Place(number, 3)).meet, store) for number in (1, 0, 2)]
        words.append({one.result() for one in found})
        assert len(words[-1]) == 1
    assert words[0] != words[1]


class Plain(nn.Module):
    """A student without batch norm: to it the parts of a batch are the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> Output:
        pooled = images.flatten(1)
        return Output(self.classifier(pooled), {"pooled": pooled})


def batch_of(index: torch.Tensor) -> Batch:
    images = torch.randn(20, 6, 1, 1, generator=torch.Generator().manual_seed(1))[index]
    return Batch(images, index % 3, index, torch.tensor(1.0))


@pytest.mark.parametrize("name", ["kd", "dkd", "dot"])
def test_the_parts_of_a_batch_are_one_step_on_it(name):
    index = torch.tensor([3, 17, 4, 0, 9, 12, 11])  # parts of 3, 2 and 2
    ends = []
    for count in (1, 3):
        torch.manual_seed(0)
        student, teacher = Plain(), Plain()
        method = build_method(compose_method(name), 0)
        optimizer = Optimizer(Schedule(1, 7, 0.1, []), student, method)
        state = TrainState(student, method, optimizer, torch.Generator(), {})
        accumulation = Accumulation(student, state, 0, Ranks(), losses_and_sums)
        for step in range(2):
            if count == 1:
                sums = update(
                    *(student, method, optimizer, batch_of(index), outputs(teacher, index)),
                    losses_and_sums,
                )
                continue
            cutting = Cutting(count, 7, 7, Ranks())
            accumulation.start(step, 7)
            for part, rows in zip(cutting.parts(7), cutting.cut(index), strict=True):
                accumulation.add(part, batch_of(rows), outputs(teacher, rows))
            sums = accumulation.finish(index, False)
        ends.append({**student.state_dict(), **sums})
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key].float(), value.float(), msg=key)


def outputs(teacher: nn.Module, index: torch.Tensor) -> tuple[Output, ...]:
    with torch.no_grad():
        return (teacher(batch_of(index).images),)


def test_every_part_reads_the_bank_as_it_was_before_the_step():
    method = build_method(compose_method("crd", "method.num_negatives=4"), 0)
    shape = NetworkProbe({"pooled": torch.Size([6])}, None, (), torch.Size([6]), None)
    method.setup(Probe(shape, (shape,), 3, torch.arange(20) % 3))
    student = Plain()
    optimizer = Optimizer(Schedule(1, 6, 0.1, []), student, method)
    state = TrainState(student, method, optimizer, torch.Generator(), {})
    accumulation = Accumulation(student, state, 0, Ranks(), losses_and_sums)
    before = method.bank_student.clone()
    index, cutting = torch.tensor([3, 17, 4, 0, 9, 12]), Cutting(2, 6, 6, Ranks())
    accumulation.start(0, 6)
    for part, rows in zip(cutting.parts(6), cutting.cut(index), strict=True):
        accumulation.add(part, batch_of(rows), outputs(student, rows))
        assert torch.equal(method.bank_student, before)
    accumulation.finish(index, False)
    moved = (method.bank_student != before).any(dim=1)
    assert torch.equal(moved.nonzero().flatten(), index.sort().values)


def test_batch_norms_move_by_the_mean_of_their_parts():
    student = nn.Sequential(nn.BatchNorm2d(6), Plain())
    means = [
        batch_of(rows).images.mean(dim=(0, 2, 3)) for rows in (torch.arange(3), torch.arange(3, 6))
    ]
    method = build_method(compose_method("ce"), 0)
    optimizer = Optimizer(Schedule(1, 6, 0.1, []), student, method)
    state = TrainState(student, method, optimizer, torch.Generator(), {})
    accumulation = Accumulation(student, state, 0, Ranks(), losses_and_sums)
    accumulation.start(0, 6)
    for part, rows in zip(*parts_of_six(), strict=True):
        accumulation.add(part, batch_of(rows), ())
    accumulation.finish(torch.arange(6), False)
    torch.testing.assert_close(student[0].running_mean, 0.1 * sum(means) / 2)
    assert student[0].num_batches_tracked == 1


def parts_of_six():
    cutting = Cutting(2, 6, 6, Ranks())
    return cutting.parts(6), cutting.cut(torch.arange(6))


def test_ranks_share_all_parts():
    for ranks in range(1, 6):
        cuttings = [Cutting(5, 12, 12, Ranks(Place(i, ranks))) for i in range(ranks)]
        assert [number for cutting in cuttings for number in cutting.own] == list(range(5))
        assert all(len(cutting.own) in (5 // ranks, -(-5 // ranks)) for cutting in cuttings)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            (2, 8, 16, Ranks(Place(1, 4))),
            "4 ranks cannot share schedule.micro_batches=2: set it to 4",
        ),
        ((4, 8, 19, Ranks()), "micro_batches=4 leaves some without images, .* last batch has 3"),
    ],
)
def test_parts_that_cannot_be_had_are_refused(given, line):
    with pytest.raises(ConfigError, match=line):
        Cutting(*given)


@pytest.mark.parametrize("told", [("x", "2", "0"), ("2", "2", "0"), ("0", "2", "-1")])
def test_an_environment_that_makes_no_sense_is_one_line(told, monkeypatch, command):
    for name, value in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), told, strict=True):
        monkeypatch.setenv(name, value)
    result = command("train", "dataset=synthetic", "dataset.num_train=40", "runtime=cpu")
    assert result.code == 2
    assert result.error_line.startswith(f"RANK={told[0]}, WORLD_SIZE={told[1]}")


def test_the_launcher_of_sweeps_is_not_for_torchrun(monkeypatch, command):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    result = command("train", "-m", "dataset=synthetic", "seed=0,1", "hydra/launcher=cohort")
    assert result.code == 2
    assert "a sweep starts its own processes: run it without torchrun" in result.error_line


def test_the_ranks_are_as_many_micro_batches_unless_another_number_is_set(monkeypatch):
    assert config().schedule.settings["micro_batches"] == 1
    for name, value in {"RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    assert config().schedule.settings["micro_batches"] == 3
    assert config("schedule.micro_batches=6").schedule.settings["micro_batches"] == 6


def test_no_table_and_no_other_number_of_ranks(monkeypatch):
    runtime = Runtime("cpu", teacher="table")
    runtime.ranks = Ranks(Place(1, 2))
    with pytest.raises(ConfigError, match="filled by one process, not by 2 ranks"):
        wants_cache(runtime, [], Views(4, True))
    with pytest.raises(
        ConfigError, match="ranks 2, not 1: start it with torchrun --nproc-per-node=2"
    ):
        check_exact(Path("run"), {"ranks": 2}, {})


class Together(Ranks):
    """Rank 1 of 2, with what the other says."""

    said = ""

    def exchange(self, text: str) -> list[str]:
        return [self.said, text]


def test_what_fails_on_one_rank_fails_on_all(monkeypatch, capsys):
    ranks, acted = Together(Place(1, 2)), []
    ranks.by_first(lambda: acted.append("first"))
    assert acted == []
    assert ranks.together(lambda: 3) == 3
    monkeypatch.setattr(Together, "said", json.dumps(["WriteError", "cannot write x"]))
    for act in (ranks.by_first, ranks.together, ranks.in_turn):
        with pytest.raises(WriteError, match="cannot write x"):
            act(lambda: None)
    with pytest.raises(RankError, match=r"rank 1: x\.jpg is no image"), ranks.own_errors():
        raise KdbenchError("x.jpg is no image")
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    print_error("what all ranks have")
    print_error("rank 1: what one has")
    assert capsys.readouterr().err == "kdbench: error: rank 1: what one has\n"


def test_an_error_that_names_its_rank_is_not_named_again():
    ranks = Together(Place(1, 2))
    with pytest.raises(RankError, match=r"^rank 0 has lost the others$"), ranks.own_errors():
        raise RankError("rank 0 has lost the others")


class First(Ranks):
    """Rank 0 of 2, whose other one has nothing to say."""

    def exchange(self, text: str) -> list[str]:
        return [text, ""]


@pytest.mark.parametrize("kind", [WriteError, RankError])
def test_what_fails_on_the_first_rank_is_raised_there(kind):
    def act() -> None:
        raise kind("as it is")

    with pytest.raises(kind, match="as it is"):
        First(Place(0, 2)).by_first(act)


def test_an_agent_that_has_died_ends_the_wait(monkeypatch):
    """Nobody listens where a rank, started a moment before, is to meet the others."""
    monkeypatch.setattr("kdbench.parallel.ranks.PATIENCE", 0.5)
    (port,) = free_ports(1)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "1", "WORLD_SIZE": "2"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RankError, match="rank 1 has lost the others"):
        Ranks(Place(1, 2)).join(torch.device("cpu"))


def test_a_rank_that_does_not_come_ends_the_wait(monkeypatch):
    monkeypatch.setattr("kdbench.parallel.ranks.PATIENCE", -1.0)
    with pytest.raises(RuntimeError, match=r"ranks \[1, 2\] have not come"):
        Ranks(Place(0, 3)).meet(dist.HashStore())


def test_a_rank_without_a_gpu_of_its_own_is_one_line(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KdbenchError, match="rank 1 has no GPU, of 1 here"):
        Runtime("cuda")


def test_a_checkpoint_that_only_the_first_rank_sees_is_one_line(tmp_path):
    member = SimpleNamespace(folder=tmp_path, runtime=SimpleNamespace(ranks=Ranks(Place(1, 2))))
    with pytest.raises(KdbenchError, match=r"rank 1 cannot read .*set runs_dir to a folder that"):
        Member.read_checkpoint(member, 3)


@pytest.mark.parametrize("error", [RankError("lost"), ValueError("of this rank alone")])
def test_what_the_others_cannot_know_ends_all_members(error):
    def act(_: Member) -> None:
        raise error

    member = SimpleNamespace(error=None)
    cohort = SimpleNamespace(alive=[member], members=[member], ranks=Ranks(Place(0, 2)))
    with pytest.raises(type(error)):
        Cohort.each(cohort, act)
    assert member.error is None


@pytest.mark.parametrize(
    ("error", "count"), [(RankError("lost"), 1), (ValueError("of this rank alone"), 2)]
)
def test_what_the_others_cannot_know_is_no_failure_of_a_run_that_closes(monkeypatch, error, count):
    def record_end(*_: object) -> None:
        raise error

    monkeypatch.setattr("kdbench.training.finish.record_end", record_end)
    job = SimpleNamespace(error=None, member=SimpleNamespace(error=None))
    task = SimpleNamespace(runtime=SimpleNamespace(ranks=Ranks(Place(0, count))))
    with pytest.raises(type(error), match=str(error)):
        close_job(job, task, {}, Console())
    assert (job.error, job.member.error) == (None, None)


@pytest.mark.parametrize("place", ["open_job", "open_member"])
def test_a_lost_rank_is_no_runs_failure(place, monkeypatch):
    def lost(*_: object) -> None:
        raise RankError("rank 0 has lost the others")

    monkeypatch.setattr(f"kdbench.training.together.{place}", lost)
    with pytest.raises(RankError):
        train_together([config(*SMALL)])
