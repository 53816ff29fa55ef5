"""Every file in experiments/ is a sweep whose jobs all compose, each a row of its own."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbench.config import hydra_cli
from kdbench.records.protocol import protocol_of
from support.commands import ROOT, compose
from support.folders import write_class_folders
from support.records import record_at

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


SHORT = ["schedule.epochs=3", "schedule.batch_size=10", "runtime=cpu", "runtime.threads=1",
         "runtime.teacher=live", "hydra/launcher=basic", "seed=0", "runs_dir=runs"]  # fmt: skip
MODERN = ["schedule.warmup_epochs=1", "schedule.micro_batches=2"]
FEW = ["dataset=synthetic", "dataset.num_train=20", "dataset.num_test=10"]
SMALL = ["dataset.root=data", "dataset.image_size=32", "dataset.test_resize=36"]
NEVER_RUN = {
    "cifar100_ofa": [*FEW, *MODERN, "teacher.timm.network.model=resnet10t",
                     "teacher.timm.network.size=null", "student.size=64", "student.model=resnet18",
                     "method=across/ofa_exits"],
    "imagenet_deit": [*SMALL, *MODERN, "teacher.timm.network.model=regnety_002",
                      "student.model=deit_tiny_distilled_patch16_224", "method=across/deit_token",
                      "+student.settings.img_size=32"],
    "imagenet_distkd": [*SMALL, *MODERN, "teacher.timm.network.model=resnet18",
                        "student.model=efficientnet_b0", "method=dist"],
    "cifar100_low_data": [*FEW, "schedule.milestones=[]", "dataset.fraction=0.5", "method=crd"],
    "cifar100_long_tail": [*FEW, "schedule.milestones=[]", "dataset.long_tail=2", "method=crd"],
}  # fmt: skip


@pytest.mark.long  # whole networks; test_modern_recipes.py, test_regimes.py hold the parts
@pytest.mark.parametrize("name", NEVER_RUN)
def test_a_sweep_that_nobody_has_run_starts_trains_scores_and_records(command, name):
    """On some images; the student is the sweep's own, a teacher of timm a smaller one."""
    for split, count in (("train", 24), ("val", 12)):
        write_class_folders(Path("data", split), count, (48, 40))
    words = NEVER_RUN[name]
    teacher = "timm" if "timm" in " ".join(words) else "resnet32x4"
    taught = [f"teacher.{teacher}.checkpoint=train", f"teacher.{teacher}.allow_chance=true"]
    result = command("train", f"+experiments={name}", *words, *SHORT, *taught)
    assert result.code == 0, result.err
    (path,) = [
        file for file in Path("runs").glob("*-s0-*/record.json") if "-none-" not in str(file)
    ]
    record = record_at(path)
    assert (record["status"], record["epochs"]) == ("done", 3)
    assert len(record["teachers"]) == 1
    assert ("top1_ema_last" in record) == (name in ("imagenet_deit", "imagenet_distkd"))
    assert command("table", "runs").code == 0


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
