"""What a CUDA graph asks of a step, tried on the CPU with a stand-in that records and replays."""

import os
import signal
from contextlib import contextmanager, nullcontext

import pytest
import torch

import kdbench.teachers.outputs
import kdbench.training.fused
import kdbench.training.recorded_step
from kdbench.errors import Interrupted
from kdbench.system.cuda_graphs import WARM_UP, Replayed, mapped, tensors_of
from kdbench.training.cohort import Cohort
from kdbench.training.together import train, train_together
from kdbench.types import Output
from support.runs import assert_same_runs, config, runs, taught

ROOMS = (kdbench.training.recorded_step, kdbench.training.fused, kdbench.teachers.outputs)
EPOCHS = ["schedule.epochs=5", "schedule.milestones=[4]"]  # every shape is warmed up and replayed


class StandIn:
    """Recording has no effect; a replay reads the recorded buffers and overwrites its outputs."""

    def __init__(self) -> None:
        self.warmed, self.recorded, self.replayed, self.buffers = 0, 0, 0, []

    def warm_up(self, run, inputs):
        self.warmed += 1
        return run(*inputs)

    def record(self, run, inputs):
        self.recorded += 1
        self.buffers.append([tensor.data_ptr() for tensor in tensors_of(inputs)])
        kept = []

        def replay():
            self.replayed += 1
            fresh = mapped(torch.Tensor.detach, run(*inputs))
            if not kept:
                kept.append(fresh)
            for old, new in zip(tensors_of(kept[0]), tensors_of(fresh), strict=True):
                old.copy_(new)
            return kept[0]

        return replay

    def inputs_read(self):
        pass

    def aside(self):
        return nullcontext()

    def join(self):
        pass


@pytest.fixture
def stand_ins(monkeypatch) -> list[StandIn]:
    """Makes the CPU record; every stand-in that is asked for."""
    made: list[StandIn] = []

    def stand_in(runtime):
        made.append(StandIn())
        return made[-1]

    for room in ROOMS:
        monkeypatch.setattr(room, "recorder_for", stand_in)
    return made


@pytest.fixture
def teachers(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return [str(train(config("student=resnet14")))]


def test_a_function_is_recorded_once_for_each_shape_and_reads_its_own_buffers():
    stand_in, state = StandIn(), torch.zeros(())

    def add(output: Output) -> dict[str, torch.Tensor]:
        state.add_(output.logits.sum())
        return {"total": state.clone(), "rows": output.logits * 2 + output.taps["pooled"]}

    replayed = Replayed(add, stand_in, "it", print)
    total = 0.0
    for step in range(8):
        for rows in (4, 2):
            logits = torch.full((rows, 3), float(step))
            result = replayed(Output(logits, {"pooled": logits}))
            total += logits.sum().item()
            assert result["total"].item() == total
            assert torch.equal(result["rows"], 3 * logits)
    assert stand_in.warmed == 2 * WARM_UP
    assert stand_in.recorded == 2
    assert stand_in.replayed == 2 * (8 - WARM_UP)


def test_what_cannot_be_recorded_runs_as_it_is_with_one_message(capsys):
    class Refusing(StandIn):
        def record(self, run, inputs):
            raise RuntimeError("operation not permitted when stream is capturing\nand a trace")

    replayed = Replayed(lambda tensor: tensor + 1, Refusing(), "run-7", print)
    results = [replayed(torch.ones(size)).sum().item() for _ in range(6) for size in (1, 2)]
    assert results == [2.0, 4.0] * 6
    assert capsys.readouterr().out == (
        "run-7 runs without a CUDA graph: operation not permitted when stream is capturing\n"
    )


def test_inputs_may_change_once_they_are_read_and_scores_wait_for_all_steps(tmp_path, monkeypatch):
    """What lets a run compute beside the others: of each step, of each read of what steps made."""
    events = []

    class Watched(StandIn):
        def warm_up(self, run, inputs):
            events.append("run")
            return super().warm_up(run, inputs)

        def record(self, run, inputs):
            replay = super().record(run, inputs)
            return lambda: (events.append("run"), replay())[1]

        def inputs_read(self):
            events.append("read")

        @contextmanager
        def aside(self):
            events.append("aside")
            yield

        def join(self):
            events.append("join")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kdbench.training.recorded_step, "recorder_for", lambda runtime: Watched())
    train(config("method=ce", *EPOCHS))
    steps, warm = 5 * 3, 2 * WARM_UP  # of a full and of a short batch
    found = " ".join(events).replace("join", "").split("aside")[1:]
    assert [one.split() for one in found].count(["run", "read"]) == warm
    assert [one.split() for one in found].count(["read", "run"]) == steps - warm
    last = [i for i, event in enumerate(events) if event == "aside"][2::3]  # step of each epoch
    assert all("join" in events[i + 3 : i + 4] for i in last)


METHODS = ["kd", "crd", "mlkd", "dot", "dynamickd"]


def test_recorded_steps_train_to_the_same_bits(teachers, stand_ins, monkeypatch):
    """Draws, banks, two views, two backward passes: all that changes is in the buffers."""
    train_together([taught(m, teachers, *EPOCHS, "runs_dir=recorded") for m in METHODS])
    assert all(stand_in.recorded for stand_in in stand_ins[1:]), "the first is of the ce teacher"
    with monkeypatch.context() as patch:
        for room in ROOMS:
            patch.setattr(room, "recorder_for", lambda runtime: None)
        train_together([taught(m, teachers, *EPOCHS, "runs_dir=plain") for m in METHODS])
    assert_same_runs("recorded", "plain")
    members = [s for s in stand_ins if s.recorded == 2 and s.warmed == 2 * WARM_UP]
    assert len(members) >= len(METHODS), "a full batch and the last, short one"
    assert all(s.replayed == 2 * 5 + 5 - 2 * WARM_UP for s in members[: len(METHODS)])


@pytest.mark.long
def test_students_that_step_as_one_are_recorded_as_one(teachers, stand_ins, monkeypatch):
    methods, fused = ["ce", "kd", "crd", "dot"], "runtime.fused=on"
    before = len(stand_ins)
    train_together([taught(m, teachers, *EPOCHS, fused, "runs_dir=recorded") for m in methods])
    found = [stand_in for stand_in in stand_ins[before:] if stand_in.recorded == 2]
    assert len(found) == 2, "three students, and the one beside them"
    with monkeypatch.context() as patch:
        for room in ROOMS:
            patch.setattr(room, "recorder_for", lambda runtime: None)
        train_together([taught(m, teachers, *EPOCHS, fused, "runs_dir=plain") for m in methods])
    assert_same_runs("recorded", "plain")


def test_a_resumed_run_is_recorded_anew(teachers, stand_ins, monkeypatch):
    train(taught("kd", teachers, *EPOCHS, "runs_dir=undisturbed"))
    stopped = taught("kd", teachers, *EPOCHS, "runs_dir=stopped")
    original = kdbench.training.recorded_step.update
    count = 0

    def stopping(*arguments, **named):
        nonlocal count
        count += 1
        if count == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(kdbench.training.recorded_step, "update", stopping)
        with pytest.raises(Interrupted):
            train(stopped)
    train(stopped)
    assert_same_runs("undisturbed", "stopped")


def test_a_network_that_draws_random_numbers_is_not_recorded(
    teachers, stand_ins, monkeypatch, capsys
):
    original = kdbench.training.recorded_step.update

    def drawing(*arguments, **named):
        torch.rand(1)
        return original(*arguments, **named)

    monkeypatch.setattr(kdbench.training.recorded_step, "update", drawing)
    train(taught("kd", teachers, *EPOCHS))
    line = "runs without a CUDA graph: its forward pass draws random numbers"
    assert capsys.readouterr().out.replace("\n", " ").count(line) == 1
    assert not any(stand_in.recorded for stand_in in stand_ins[-2:-1])
    assert runs()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
def test_no_step_waits_for_the_gpu(teachers, monkeypatch):
    """Warm-up, recording and replay, of full and short batches, live and cached."""
    original = Cohort.train_step

    def watched(cohort, batches):
        torch.cuda.set_sync_debug_mode("error")
        try:
            original(cohort, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Cohort, "train_step", watched)
    for source in ("live", "table"):
        given = ["runtime=cuda", f"runtime.teacher={source}", f"runs_dir={source}"]
        found = train_together([taught(m, teachers, *EPOCHS, *given) for m in ("ce", "kd", "crd")])
        assert not any(isinstance(outcome, Exception) for outcome in found)
