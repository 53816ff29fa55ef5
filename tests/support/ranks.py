"""Processes that train together, as torchrun starts them, but without its agent."""

import json
import os
import subprocess
import sys
from pathlib import Path

from chaos.processes import free_ports
from kdbench.records.settings import TrainSettings

# Trains the cohorts of a file, each until it is not interrupted; gradients go out in several
# messages, of 16 KiB and then 64.
COHORTS = """
import sys
import kdbench.parallel.overlap
from kdbench.errors import Interrupted
from kdbench.parallel.ranks import leave
from kdbench.sweeps.worker import understood
from kdbench.training.together import train_together
kdbench.parallel.overlap.SIZES = 1 << 14, 1 << 16
for line in open(sys.argv[1]):
    outcomes = None
    while outcomes is None:
        try:
            outcomes = train_together(understood(line))
        except Interrupted as stopped:
            print(stopped, flush=True)
    for outcome in outcomes:
        print(type(outcome).__name__, outcome, flush=True)
leave()
"""


def as_ranks(count: int, *command: str) -> list[subprocess.Popen]:
    """Processes with what torchrun tells each."""
    (port,) = free_ports(1)
    told = {"WORLD_SIZE": f"{count}", "MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}"}
    told |= {"OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **told, "RANK": f"{rank}", "LOCAL_RANK": f"{rank}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each."""
    told = [process.communicate(timeout=900) for process in processes]
    return [(p.returncode, *text) for p, text in zip(processes, told, strict=True)]


def write_plan(cohorts: list[list[TrainSettings]]) -> None:
    """A line of JSON for each cohort, as a sweep's workers get them."""
    lines = (json.dumps([one.spelt() for one in configs]) + "\n" for configs in cohorts)
    Path("plan").write_text("".join(lines))
