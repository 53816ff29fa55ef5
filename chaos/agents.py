"""A run of two of torchrun's agents, as on two machines: agents and ranks are killed."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from subprocess import Popen

from chaos.compare import differences
from chaos.ground import Ground
from chaos.processes import PATIENCE, alive, children, free_ports, kill
from chaos.sweeps import trains
from chaos.trials import ENOUGH, Trial, records, repeated

# A newcomer waits for an address that the first agent gives only once, unless torchrun is told to
# make a store for each round (dynamic_rendezvous.py, `next_rendezvous`, PyTorch 2.15.0).
STORES = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
STARTING = 12.0  # seconds within which half of the kills come, most of it Python's start
TRAINING = 2.0  # after the first checkpoint, within which the others come
LEFT_ALONE = 20.0  # seconds after which an agent is stopped that waits for a dead one


def agent(
    log: Path, port: int, nodes: str, command: Sequence[str], restarts: int = 3
) -> "Popen[bytes]":
    """Start an agent with a rank that trains; all of one port of loopback meet."""
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=1"]
    meeting += ["--rdzv-conf=last_call_timeout=1", "--local-addr=127.0.0.1"]
    count = [f"--nnodes={nodes}", "--nproc-per-node=1", f"--max-restarts={restarts}"]
    words = [*count, *meeting, "-m", "kdbench.train", *command]
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *words],
            env={**os.environ, **STORES, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=file,
        )


def kill_ranks(*those: "Popen[bytes]") -> None:
    """The ranks of these agents."""
    for rank in [rank for one in those for rank in children(one.pid)]:
        kill(rank)


def kill_machine(one: "Popen[bytes]") -> None:
    """An agent and its rank, which has a group of its own, are gone as with their machine."""
    ranks = [] if one.poll() is not None else children(one.pid)
    one.kill()
    for rank in ranks:
        kill(rank)
    one.wait()


def agents(ground: Ground, number: int, most: int) -> Trial:
    """Kill agents and ranks of a run up to `most` times, let it end, and compare."""
    draw = Random(f"{ground.seed} agents {number}")
    method = draw.choice(sorted(ground.chosen))
    found = Trial(number, "agents", [method], "live")
    settings = [*ground.settings(method), "schedule.micro_batches=2"]
    expected = ground.finish(settings, ground.folder / "undisturbed" / f"{method}-in-parts")
    where = ground.folder / f"trial-{number}"
    shutil.rmtree(where, ignore_errors=True)
    pair = Pair(ground.folder, [*settings, f"runs_dir={where}"], where, draw)
    victims = [pair.kill_machine, pair.kill_agent, pair.kill_rank, pair.kill_ranks]
    failure: str | None = "not started"
    lives = draw.randint(1, ENOUGH)
    while failure is not None and lives > 0 and len(found.kills) < most:
        lives -= 1
        done = records(where)
        victim, failure = draw.choice(victims)()
        found.kills += [victim] * bool(victim)
        found.differences += repeated(done, where)
        if failure is not None and not victim:
            return found.closed(failure, [], where)
    if failure is not None:
        done = records(where)
        pair.start(restarts=0)
        failure = pair.end(PATIENCE)
        found.differences += repeated(done, where)
    return found.closed(failure, [expected], where, but_for_hardware)


def but_for_hardware(one: Path, other: Path) -> list[str]:
    """What differs between two runs; their hardware says how many ranks there were."""
    return [what for what in differences(one, other) if what != "record: hardware"]


class Pair:
    """Two agents with a rank each, as often as they are started."""

    def __init__(self, folder: Path, command: list[str], where: Path, draw: Random) -> None:
        self.command, self.where, self.draw = command, where, draw
        self.logs = [folder / f"agent-{name}.log" for name in (0, 1)]
        self.agents: list[Popen[bytes]] = []

    def start(self, restarts: int) -> None:
        """Give the command on both machines."""
        (port,) = free_ports(1)
        self.agents = [agent(log, port, "2", self.command, restarts=restarts) for log in self.logs]

    def end(self, patience: float) -> str | None:
        """Why not both end well by themselves; whoever does not is stopped."""
        until = time.monotonic() + patience
        while any(one.poll() is None for one in self.agents) and time.monotonic() < until:
            time.sleep(0.05)
        for one in self.agents:
            one.terminate()
            one.wait()
        codes = [one.returncode for one in self.agents]
        said = "; ".join(f"see {log}" for log in self.logs)
        return None if codes == [0, 0] else f"agents ended with {codes}: {said}"

    def kill_machine(self) -> tuple[str, str | None]:
        """One agent and its rank."""
        return self.kill("agent and its rank", lambda: kill_machine(self.one), 0)

    def kill_agent(self) -> tuple[str, str | None]:
        """One agent; its rank may go on."""
        return self.kill("agent", lambda: kill(self.one.pid), 0)

    def kill_rank(self) -> tuple[str, str | None]:
        """One rank, which the agents replace."""
        return self.kill("rank", lambda: kill_ranks(self.one), 3)

    def kill_ranks(self) -> tuple[str, str | None]:
        """All ranks."""
        return self.kill("both ranks", lambda: kill_ranks(*self.agents), 3)

    @property
    def one(self) -> "Popen[bytes]":
        """Any of the two."""
        return self.draw.choice(self.agents)

    def kill(self, victim: str, act: Callable[[], object], restarts: int) -> tuple[str, str | None]:
        """Start, kill at any time, wait; returns whom it killed, and why they did not end well."""
        self.start(restarts)
        self.wait()
        there = all(one.poll() is None for one in self.agents)
        ranks = [rank for one in self.agents for rank in children(one.pid)]
        if there and (ranks or not restarts):
            act()
        failure = self.end(PATIENCE if restarts else LEFT_ALONE)
        end = time.monotonic() + PATIENCE
        while any(map(alive, ranks)):
            if time.monotonic() > end:
                return victim, "ranks went on without their agent"
            time.sleep(0.1)
        return victim * (there and bool(ranks or not restarts)), failure

    def wait(self) -> None:
        """Wait for the moment of a kill, at most to the end of an agent."""
        end = time.monotonic() + self.draw.uniform(0, STARTING)
        if self.draw.random() < 0.5:
            while all(one.poll() is None for one in self.agents) and not trains(self.where):
                time.sleep(0.01)
            end = time.monotonic() + self.draw.uniform(0, TRAINING)
        while all(one.poll() is None for one in self.agents) and time.monotonic() < end:
            time.sleep(0.01)
