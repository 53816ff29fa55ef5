"""Every file in experiments/ is a sweep whose jobs all compose, each a row of its own."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbench.config import hydra_cli
from kdbench.records.protocol import protocol_of
from support.commands import ROOT, compose

FILES = sorted((ROOT / "experiments").glob("*.yaml"))

MOST = 4  # jobs for a key; each method, data set and network is composed in test_run_config.py


def swept(path: Path) -> list[list[str]]:
    """The values of each swept key, as overrides."""
    found = hydra_cli.swept("config", [f"+experiments={path.stem}"])
    return [values for key, values in found.items() if "experiments" not in key]


def jobs(path: Path) -> Iterator[list[str]]:
    """The first job, and some of those that differ from it in one key."""
    choices = swept(path)
    first = [values[0] for values in choices]
    yield first
    for position, values in enumerate(choices):
        assert len(set(values)) == len(values), "a value is named twice"
        others = values[1:]
        for value in others[:: len(others) // MOST + 1]:
            yield [*first[:position], value, *first[position + 1 :]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_job_composes_and_is_told_apart(path):
    rows, found = set(), list(jobs(path))
    for job in found:
        config = compose(f"+experiments={path.stem}", *job)
        names = [config.dataset.name, config.student.name, config.method.name]
        protocol = protocol_of(config.dataset, config.schedule)
        rows.add((*names, *config.teacher, protocol, config.seed))
    assert len(rows) == len(found), "two jobs would share a row of the table"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_head_gives_command_cost_and_protocol(path):
    head = path.read_text().split("defaults:")[0]
    count = math.prod(len(values) for values in swept(path))
    grows = "glob(" in path.read_text()
    assert ("Cost: one run" if grows else f"Cost: {count} runs") in head
    for word in ("# Command: ", "# Protocol: ", "xpected"):
        assert word in head, word


def test_every_method_is_in_a_sweep_without_being_listed():
    """A new file of conf/method needs no line elsewhere: the sweep of the others has it."""
    methods = {
        choice.removeprefix("method=")
        for path in FILES
        for values in swept(path)
        for choice in values
        if choice.startswith("method=")
    }
    assert methods >= {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
    excluded = (ROOT / "experiments" / "cifar100_unswept.yaml").read_text()
    assert not re.search(r"\blogit_cosine\b", excluded), "the example of CONTRIBUTING.md is new"
