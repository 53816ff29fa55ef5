"""The Dockerfile, by the rules of its linters that matter here; no Docker is needed."""

import json
import re
import shlex
import tomllib

from support.commands import ROOT

LINES = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
STEPS = [line.split(maxsplit=1) for line in LINES if line and not line.startswith("#")]


def all_of(instruction: str) -> list[str]:
    return [text for name, text in STEPS if name == instruction]


def test_its_base_is_a_python_that_kdbench_supports():
    (base,) = all_of("FROM")
    minor = int(re.fullmatch(r"python:3\.(\d+)-slim-\w+", base)[1])
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    low, high = (int(number) for number in re.findall(r"3\.(\d+)", asked))
    assert low <= minor < high


def test_it_copies_what_is_there_and_what_is_sent_to_it():
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    assert sent[0] == "*"
    for text in all_of("COPY"):
        *sources, _ = shlex.split(text)
        for source in sources:
            assert (ROOT / source).exists()
            assert f"!{source}" in sent


def test_it_installs_the_versions_of_the_constraints_and_runs_as_no_root():
    (install,) = [text for text in all_of("RUN") if text.startswith("pip")]
    assert "--constraint /kdbench/constraints.txt" in install
    assert "--no-cache-dir" in install
    extras = re.search(r"\[([\w,]+)\]", install)[1].split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= set(project["optional-dependencies"])
    assert all_of("USER") == ["kdbench"]
    names = [name for name, _ in STEPS]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")
    assert set(names) <= {"FROM", "RUN", "COPY", "USER", "WORKDIR", "CMD"}


def test_bare_it_runs_the_quickstart():
    """The commands of `make quickstart`, without the mirror to W&B."""
    (command,) = all_of("CMD")
    shell, option, text = json.loads(command)
    assert (shell, option) == ("bash", "-ec")
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("quickstart: setup")[2].partition("\n\n")[0]
    found = re.findall(r"-m kdbench\.(\w+) (.*)", recipe.replace(" logger=wandb", ""))
    assert [one.strip() for one in text.split(";")] == [f"kdbench-{a} {b}" for a, b in found]
