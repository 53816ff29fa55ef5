"""torchrun's agents, one for each machine; here two of them share this one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from chaos.compare import differences
from kdbench.training.together import train
from support.ports import free_ports
from support.runs import config, runs
from support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.long
# A newcomer waits for an address that the first agent gives only once, unless torchrun is told to
# make a store for each round (dynamic_rendezvous.py, `next_rendezvous`, PyTorch 2.15.0).
STORES = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
TRAIN = [
    *("dataset=synthetic", "dataset.num_train=64", "dataset.num_test=510", "student=resnet8"),
    *("schedule.batch_size=24", "schedule.milestones=[1]", "schedule.micro_batches=2"),
    *("runtime=cpu", "runtime.threads=1"),
]
SHORT, LONG = "schedule.epochs=2", "schedule.epochs=60"
Agent = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """Starts one, with ranks that train; all of a test's meet on one port of loopback."""
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    (port,) = free_ports(1)
    started = []

    def start(nodes: str, *overrides: str, ranks: int = 1) -> "subprocess.Popen[bytes]":
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=1"]
        given = [*meeting, "--rdzv-conf=last_call_timeout=1", "--local-addr=127.0.0.1"]
        count = [f"--nnodes={nodes}", f"--nproc-per-node={ranks}", "--max-restarts=3"]
        command = ["-m", "kdbench.train", *TRAIN, *overrides]
        with Path(f"agent-{len(started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *count, *given, *command],
                env={**os.environ, **STORES, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        kill(process)
    torch.set_num_threads(before)


def kill(agent: "subprocess.Popen[bytes]") -> None:
    """An agent and its ranks, which have groups of their own, are gone as with their machine."""
    if agent.poll() is None:
        found = subprocess.run(["pgrep", "-P", str(agent.pid)], capture_output=True, text=True)
        agent.kill()
        for rank in found.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(rank), signal.SIGKILL)
    agent.wait()


def said() -> str:
    """All that agents and ranks have said."""
    return "\n".join(path.read_text() for path in sorted(Path().glob("agent-*.log")))


def checkpoints() -> set[Path]:
    return {path for folder in runs().values() for path in folder.glob("checkpoint-*")}


def another_checkpoint() -> None:
    """Wait until what trains now has written one."""
    known = checkpoints()
    wait_until(lambda: checkpoints() - known)


def assert_as_alone(*overrides: str) -> None:
    expected = train(config(*TRAIN, *overrides, "runs_dir=alone"))
    found = differences(expected, Path("runs") / expected.name)
    assert set(found) <= {"record: hardware"}, "which says how many ranks there were at the end"


def test_two_agents_end_with_the_bits_of_one_process(agent):
    for process in [agent("2", SHORT), agent("2", SHORT)]:
        assert process.wait(PATIENCE) == 0, said()
    assert_as_alone(SHORT)


def test_an_agent_may_come_and_go(agent):
    """One trains alone, a second joins, is killed, and the first goes on."""
    steps = "runtime.checkpoint_steps=5"
    first = agent("1:2", LONG, steps)
    another_checkpoint()
    second = agent("1:2", LONG, steps)
    wait_until(lambda: "going on after step" in said(), lambda: said() if first.poll() else None)
    another_checkpoint()
    kill(second)
    assert first.wait(PATIENCE) == 0, said()
    assert said().count("going on after step") == 2
    assert_as_alone(LONG, steps)
