from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax as scipy_log_softmax
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import accuracy_score, log_loss

from kdbench.analysis.entropy import (
    Outputs,
    by_answer,
    by_entropy,
    divergence,
    entropy,
    log_softmax,
    over_epochs,
    scores,
)
from kdbench.assembly.finished import Source
from kdbench.errors import KdbenchError
from kdbench.records.passport import Passport
from kdbench.records.reading import record_of
from kdbench.schema.node import Node
from kdbench.system.files import LARGEST
from support.batches import pair
from support.records import make_record


def test_entropy_and_divergence_are_scipys():
    student, teacher, _ = pair()
    p, q = (np.exp(scipy_log_softmax(logits, axis=1)) for logits in (teacher, student))
    np.testing.assert_allclose(entropy(teacher), scipy_entropy(p, axis=1), rtol=1e-12)
    np.testing.assert_allclose(
        divergence(teacher, student), scipy_entropy(p, q, axis=1), atol=1e-13
    )


def test_large_logits_overflow_nothing():
    np.testing.assert_allclose(log_softmax(np.array([[1e4, 0.0]])), [[0, -1e4]])
    assert entropy(np.array([[1e4, 0.0]])) == 0


def test_scores_are_scikit_learns():
    student, teacher, labels = pair()
    found = scores(Outputs(student, teacher, labels))
    probabilities = np.exp(scipy_log_softmax(student, axis=1))
    assert found.loss == pytest.approx(log_loss(labels, probabilities), rel=1e-12)
    assert found.accuracy == 100 * accuracy_score(labels, student.argmax(1))
    assert found.teacher_accuracy == 100 * accuracy_score(labels, teacher.argmax(1))
    assert found.agreement == 100 * accuracy_score(teacher.argmax(1), student.argmax(1))


def test_bins_hold_equally_many_images_from_sure_to_unsure():
    outputs = Outputs(*pair(n=103))
    bins = by_entropy(outputs)
    assert [one.scores.n for one in bins] == [11] * 3 + [10] * 7
    edges = [edge for one in bins for edge in (one.low, one.high)]
    assert edges == sorted(edges)
    lowest = np.argsort(entropy(outputs.teacher), kind="stable")[:11]
    assert bins[0].scores == scores(outputs.at(lowest))
    whole = sum(one.scores.n * one.scores.accuracy for one in bins) / 103
    assert whole == pytest.approx(scores(outputs).accuracy, abs=1e-10)
    assert len(by_entropy(outputs.at(np.arange(4)))) == 4, "fewer images, fewer bins"


def test_answers_worked_by_hand():
    teacher = np.log([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]])
    student = np.log([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])
    found = by_answer(Outputs(student, teacher, np.array([0, 1])))
    plain = 0.7 * np.log(1.4) + 0.2 * np.log(0.8) + 0.1 * np.log(0.4)
    mended = 0.2 * np.log(0.4) + 0.7 * np.log(2.8) + 0.1 * np.log(0.4)
    right, wrong = found["right"], found["wrong"]
    assert (right.n, right.accuracy, right.agreement) == (1, 100, 100)
    assert (wrong.n, wrong.accuracy, wrong.agreement) == (1, 0, 100)
    assert right.divergence == right.rectified_divergence == pytest.approx(plain, abs=1e-14)
    assert wrong.divergence == pytest.approx(plain, abs=1e-14)
    assert wrong.rectified_divergence == pytest.approx(mended, abs=1e-14)


def test_a_teacher_that_is_never_wrong_has_no_such_row():
    _, teacher, _ = pair()
    assert list(by_answer(Outputs(teacher, teacher, teacher.argmax(1)))) == ["right"]


def test_metrics_too_large_for_a_run_are_not_read(tmp_path: Path):
    metrics = tmp_path / "metrics.jsonl"
    with metrics.open("wb") as file:
        file.truncate(LARGEST + 1)  # a hole, which takes no place on the disk
    network, record = Node("kdbench.networks.resnet.resnet8", {}), record_of(make_record())
    source = Source("run", tmp_path / "student.pt", network, None, Passport(), None, record)
    with pytest.raises(KdbenchError) as told:
        over_epochs(source)
    assert str(told.value) == f"{metrics} cannot be read (more than {LARGEST} bytes): restore it"
