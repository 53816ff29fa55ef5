import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import ca_weights, kd_loss
from kdbench.methods.aver import Aver
from kdbench.methods.ca_mkd import CAMKD
from kdbench.types import Affine, Batch, NetworkProbe, Output, Probe
from support.teachers_example import (
    LABELS,
    STUDENT,
    TEACHERS,
    close,
    distillation,
    random_logits,
    run,
)

WEIGHTS = [[0.45441641, 0.29786371], [0.40671670, 0.40064600], [0.13886690, 0.30149029]]
SHAPES = [(3, 2, 2), (4, 4, 4), (2, 8, 8)]  # of the teachers' maps; the student's is (2, 4, 4)


def of_logits(**settings) -> CAMKD:
    return CAMKD(feature_weight=0, **settings)


def test_worked_example():
    close(ca_weights(TEACHERS, LABELS), WEIGHTS)
    close(distillation(of_logits()), 0.09101435)
    close(distillation(of_logits(divide_by_k=False)), 0.27304306)


def test_weights_sum_to_one_and_follow_the_labels():
    logits, labels = random_logits(4, 6, 10), torch.arange(6)
    weights = ca_weights(logits, labels)
    torch.testing.assert_close(weights.sum(0), torch.ones(6, dtype=torch.float64))
    assert ((weights >= 0) & (weights <= 1 / 3)).all()
    assert (weights != ca_weights(logits, labels + 1)).all()


def test_equal_cross_entropies_give_a_share_of_aver():
    teachers = torch.stack([TEACHERS[0], TEACHERS[0][:, [0, 2, 1]], TEACHERS[0]])
    close(ca_weights(teachers, LABELS), 1 / 3)
    torch.testing.assert_close(
        distillation(of_logits(), teachers=teachers), distillation(Aver(), teachers=teachers) / 3
    )


def test_a_hopeless_teacher_has_no_weight():
    teachers = torch.stack([torch.tensor([[-500.0, 500.0, 0.0]] * 2), *TEACHERS[1:].float()])
    close(ca_weights(teachers, LABELS), torch.tensor([[0.0], [0.5], [0.5]]))


def test_one_teacher_is_kd():
    loss = run(of_logits(), teachers=TEACHERS[:1])["kd"]
    torch.testing.assert_close(loss, kd_loss(STUDENT, TEACHERS[0], 4.0))


def example(**settings) -> tuple[CAMKD, Output, tuple[Output, ...]]:
    """Teachers of different shapes with classifiers."""
    torch.manual_seed(0)
    teachers = [
        NetworkProbe({"map": torch.Size(s)}, Affine(torch.randn(3, s[0]), torch.randn(3)))
        for s in SHAPES
    ]
    method = CAMKD(**settings)
    method.setup(Probe(NetworkProbe({"map": torch.Size((2, 4, 4))}), tuple(teachers), 3, LABELS))
    method.double().eval()
    maps = [torch.rand(2, *shape, dtype=torch.float64) for shape in SHAPES]
    feature = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    outputs = tuple(Output(z, {"map": m}) for z, m in zip(TEACHERS, maps, strict=True))
    return method, Output(STUDENT, {"map": feature}), outputs


def batch(epoch: float = 2.0, labels: torch.Tensor = LABELS) -> Batch:
    return Batch(torch.empty(0), labels, torch.arange(2), torch.tensor(epoch))


def test_feature_term_by_hand():
    method, student, teachers = example()
    found = method(batch(), student, teachers)["feature"]
    for n in range(2):
        doubts, errors = [], []
        for k, teacher in enumerate(teachers):
            projected = method.projections[k](student.taps["map"])[n]
            head = getattr(method, f"head{k}_weight"), getattr(method, f"head{k}_bias")
            logits = head[0] @ projected.mean(dim=(1, 2)) + head[1]
            doubts.append(-torch.log_softmax(logits, 0)[LABELS[n]])
            errors.append(((projected - teacher.taps["map"][n]) ** 2).mean())
        shares = torch.softmax(torch.stack(doubts), 0)
        expected = sum((1 - s) / 2 * e for s, e in zip(shares, errors, strict=True)) / 3
        torch.testing.assert_close(found[n], 50 * expected)


def test_feature_weights_pass_gradients_unless_detached():
    gradients = []
    for detached in (False, True):
        method, student, teachers = example(detach_feature_weight=detached)
        terms = method(batch(), student, teachers)
        gradients.append(torch.autograd.grad(terms["feature"].sum(), student.taps["map"])[0])
        last = terms["feature"]
    torch.testing.assert_close(last, example()[0](batch(), student, teachers)["feature"])
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3 * gradients[0].abs().max()


def test_no_feature_term_in_epoch_one():
    method, student, teachers = example()
    terms = [method(batch(epoch), student, teachers) for epoch in (1.0, 2.0, 240.0)]
    assert (terms[0]["feature"] == 0).all()
    assert (terms[1]["feature"] > 0).all()
    torch.testing.assert_close(terms[1]["feature"], terms[2]["feature"])
    torch.testing.assert_close(terms[0]["kd"], terms[1]["kd"])


def test_refuses_a_teacher_without_a_classifier():
    network = NetworkProbe({"map": torch.Size((2, 4, 4))})
    with pytest.raises(ConfigError, match="teacher 0 has no linear classifier"):
        CAMKD().setup(Probe(network, (network,), 3, LABELS))
