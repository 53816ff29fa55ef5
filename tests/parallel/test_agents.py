"""torchrun's agents, one for each machine; here two of them share this one."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from chaos import agents
from chaos.processes import PATIENCE, free_ports, wait_until
from kdbench.training.together import train
from support.runs import config, runs

pytestmark = pytest.mark.long
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

    def start(nodes: str, *overrides: str) -> "subprocess.Popen[bytes]":
        log = Path(f"agent-{len(started)}.log")
        started.append(agents.agent(log, port, nodes, [*TRAIN, *overrides]))
        return started[-1]

    yield start
    for process in started:
        agents.kill_machine(process)
    torch.set_num_threads(before)


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
    assert not agents.but_for_hardware(expected, Path("runs") / expected.name)


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
    agents.kill_machine(second)
    assert first.wait(PATIENCE) == 0, said()
    assert said().count("going on after step") == 2
    assert_as_alone(LONG, steps)
