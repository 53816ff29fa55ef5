"""A W&B sweep has the jobs of the kdbench sweep that it is made from."""

import itertools
import sys

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from kdbench import sweep_yaml
from kdbench.config import hydra_cli
from kdbench.config.run_config import check_train
from kdbench.records.identity import canonical

ARGUMENTS = [
    "+experiments=quickstart",
    "runs_dir=my runs#1",
    "method=kd,dkd",
    "schedule.lr=0.05,1e-1",
    "seed=7",
]


def printed(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["kdbench-sweep-yaml", *arguments])
    try:
        sweep_yaml.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr()


def test_an_agents_commands_are_the_jobs_of_the_sweep(monkeypatch, capsys):
    code, said = printed(monkeypatch, capsys, *ARGUMENTS, "logger.project=ours")
    assert code == 0
    sweep = yaml.safe_load(said.out)
    assert (sweep["method"], sweep["project"]) == ("grid", "ours")
    names, choices = zip(*((k, v["values"]) for k, v in sweep["parameters"].items()), strict=True)
    start = ["${env}", "${interpreter}", "-m", "${program}"]
    assert sweep["command"][:4] == start
    assert sweep["program"] == "kdbench.train"
    assert sweep["command"][-1] == "${args_no_hyphens}"
    jobs = []
    for chosen in itertools.product(*choices):
        args = {name: {"value": value} for name, value in zip(names, chosen, strict=True)}
        written = create_sweep_command_args({"args": args})["args_no_hyphens"]
        (job,) = hydra_cli.compose_jobs("config", [*sweep["command"][4:-1], *written])
        jobs.append(check_train(job).spelt())
    mirrored = ["logger=wandb", "logger.mode=online", "logger.project=ours"]
    words = hydra_cli.understood("config", ["-m", *ARGUMENTS, *mirrored])
    raws = hydra_cli.compose_jobs("config", words)
    wanted = [check_train(raw).spelt() for raw in raws]
    assert sorted(map(canonical, jobs)) == sorted(map(canonical, wanted))
    assert len(jobs) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=kd"], "nothing is swept"),
        (["+experiments=quikstart"], "did you mean 'quickstart'?"),
        (["method=kd,dkdd"], "did you mean 'dkd'?"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, arguments, words):
    code, said = printed(monkeypatch, capsys, *arguments)
    assert code == 2
    (line,) = said.err.splitlines()
    assert words in line
    assert not said.out
