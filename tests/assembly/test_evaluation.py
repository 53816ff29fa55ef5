"""Scores against the same written out image by image."""

import math
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

from kdbench.assembly.evaluation import evaluate, evaluate_together
from kdbench.data.base import Dataset
from kdbench.data.memory.synthetic import synthetic
from kdbench.parallel.ranks import Ranks
from kdbench.parallel.torchrun import Place
from kdbench.records.contents import Costs, RunFacts
from kdbench.records.protocol import protocol_of
from kdbench.schema.node import Node
from kdbench.system.hardware import CLEAR_REFS
from kdbench.tasks.classification.task import Classification, agreement, scores_of_rows
from kdbench.tasks.task import Ending
from kdbench.training.recording import results
from kdbench.types import Output
from support.records import make_record

CPU = torch.device("cpu")


class FixedLogits(nn.Module):
    """Logits that were decided beforehand, whatever the images."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.start = logits, 0

    def forward(self, images: Tensor) -> Output:
        self.start, start = self.start + len(images), self.start
        return Output(self.logits[start : self.start], {})


def dataset(test: int) -> Dataset:
    """Random images of 8 x 8; only the labels count."""
    plain = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "pad": 0, "flip": False, "val_split": 0}
    return synthetic(10, 20, test, image_size=8, seed=0, **plain)


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Guo et al., 2017, equation 3, image by image, in percent."""
    inside: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(logits.double().softmax(1).tolist(), labels.tolist(), strict=True):
        confidence = max(row)
        correct = row.index(confidence) == label
        inside[max(math.ceil(confidence * bins), 1) - 1].append((confidence, correct))
    gaps = (abs(sum(c for c, _ in one) - sum(h for _, h in one)) for one in inside)
    return 100 * sum(gaps) / len(labels)


def test_scores_equal_those_written_out():
    data = dataset(700)
    count = len(data.test.labels)
    logits = 3 * torch.randn(count, 10, generator=torch.Generator().manual_seed(1))
    scores = evaluate(FixedLogits(logits), data.test, data, CPU)
    assert scores.n == count > 500, "more than one batch"
    assert torch.equal(scores.predictions, logits.argmax(1))
    correct = scores.predictions == data.test.labels
    assert scores.top1 == pytest.approx(100 * correct.double().mean())
    assert scores.ece == pytest.approx(calibration_error(logits, data.test.labels), rel=1e-9)
    assert scores.ece > 30, "confident noise is not calibrated"
    nats = torch.distributions.Categorical(logits=logits.double()).entropy().mean()
    assert scores.entropy == pytest.approx(float(nats), rel=1e-12)


def test_certain_and_right_is_calibrated():
    data = dataset(40)
    logits = 1000 * nn.functional.one_hot(data.test.labels, 10).float()
    certain = evaluate(FixedLogits(logits), data.test, data, CPU)
    assert certain.ece == certain.entropy == 0
    assert evaluate(FixedLogits(-logits), data.test, data, CPU).top1 == 0


def test_agreement_counts_equal_choices():
    assert agreement(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4])) == 75


def test_the_last_epoch_is_the_headline():
    tops = [10.0, 50.0, 40.0, 41.0, 42.0, 43.0, 44.0]
    keys = "train/loss", "train/top1", "test/top5", "test/loss"
    rows = [
        {"epoch": i + 1, "test/top1": top, **dict.fromkeys(keys, 1.0)} for i, top in enumerate(tops)
    ]
    content = make_record()
    own = {field.name for field in fields(RunFacts)} & content.keys()
    facts = RunFacts.read({key: content[key] for key in own})
    cost = Costs(seconds_share=1.0, cpu_seconds=1.0, gpu_seconds=None)
    measured = {"ece_last": 5.0, "agreement": {}}
    ending = Ending({"top1": 44.0}, {**scores_of_rows(rows), **measured})
    found = results(Classification, rows, facts, ending, cost, "2" * 64)
    assert (found.top1_last, found.top1_best_on_test, found.epoch_best_on_test) == (44, 50, 2)
    assert found.top1_last5 == 42
    assert "top1_val_last" not in found.spelt()


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="the system keeps one peak a process")
def test_the_peak_of_memory_is_that_since_the_reset():
    """In a process of its own: what a long one frees stays with its allocator."""
    code = """
import torch
from kdbench.system.hardware import peak_memory_mb, reset_peak_memory
cpu = torch.device("cpu")
before = torch.ones(50_000_000)  # 200 MB
high = peak_memory_mb(cpu)
del before
reset_peak_memory(cpu)
assert peak_memory_mb(cpu) < high - 150
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_protocol_names_what_must_be_equal():
    dataset = Node("cifar100", {"val_split": 0}, "cifar100")
    schedule = Node("Schedule", {"epochs": 240, "batch_size": 64, "lr": 0.05})
    assert protocol_of(dataset, schedule) == "cifar100-240ep-b64-last"
    schedule = schedule.having(lr=0.01, precision="bf16", table_precision="fp16")
    found = protocol_of(dataset.having(val_split=5000), schedule)
    assert found == "cifar100-240ep-b64-bf16-tablefp16-val5000-last"


class OutOfMemory(nn.Module):
    """A network whose batch is too large for the device."""

    def forward(self, images: Tensor) -> Output:
        raise torch.OutOfMemoryError("no memory left")


def test_the_error_of_a_forward_pass_ends_its_own_scores_alone():
    data = dataset(20)
    right = 1000 * nn.functional.one_hot(data.test.labels, 10).float()
    networks = [OutOfMemory(), FixedLogits(right)]
    given = data.test, data, CPU, torch.contiguous_format
    failed, scores = evaluate_together(networks, *given, Ranks(), "fp32")
    assert isinstance(failed, torch.OutOfMemoryError)
    assert scores.top1 == 100
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        evaluate(networks[0], data.test, data, CPU)
    assert networks[0].training, "its own mode is restored"


def test_one_of_several_ranks_raises_at_once():
    """The others know nothing of its error, so that none may go on to add up scores."""
    data = dataset(20)
    given = data.test, data, CPU, torch.contiguous_format
    with pytest.raises(torch.OutOfMemoryError):
        evaluate_together([OutOfMemory()], *given, Ranks(Place(count=2)), "fp32")
