import pytest
import torch
from torch.nn.functional import normalize

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss
from kdbench.methods.kd_pp import KDPlusPlus, nd_loss
from kdbench.types import Batch, NetworkProbe, Output, Probe

LABELS = torch.tensor([0, 2, 2, 1])
MEANS = torch.tensor([[2.0, 0.0], [0.0, 3.0], [3.0, 4.0]])


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def method(student_width: int, **settings: float) -> KDPlusPlus:
    student = NetworkProbe({"pooled": torch.Size([student_width])})
    teacher = NetworkProbe({"pooled": torch.Size([2])}, class_means=lambda tap: MEANS)
    made = KDPlusPlus(**settings)
    made.setup(Probe(student, (teacher,), 3, LABELS))
    return made.double()


def batch(epoch: float, drawn: torch.Tensor | None = None) -> Batch:
    return Batch(torch.empty(0), LABELS, torch.arange(4), torch.tensor(epoch), drawn)


def test_follows_the_formula():
    student, teacher = drawn(4, 2), drawn(4, 2, seed=1)
    outputs = [Output(drawn(4, 3, seed=2), {"pooled": f}) for f in (student, teacher)]
    terms = method(2, nd_weight=1.5)(batch(1.0), outputs[0], (outputs[1],))
    for b, label in enumerate(LABELS):
        mean = MEANS[label].double()
        length = max(student[b].square().sum().sqrt(), teacher[b].square().sum().sqrt())
        along = (student[b] * mean).sum() / mean.square().sum().sqrt()
        torch.testing.assert_close(terms["nd"][b], 1.5 * (1 - along / length))


def test_a_long_feature_in_its_class_direction_is_perfect():
    directions = normalize(MEANS[LABELS].double(), dim=1)
    teacher = drawn(4, 2, seed=1)
    long, short = 9 * directions, 0.5 * teacher.norm(dim=1, keepdim=True) * directions
    assert nd_loss(long, teacher, directions).abs().max() < 1e-12
    torch.testing.assert_close(
        nd_loss(short, teacher, directions), torch.full((4,), 0.5, dtype=torch.float64)
    )


def test_a_feature_longer_than_the_teachers_is_only_turned():
    student = (9 * drawn(4, 2)).requires_grad_()
    nd_loss(
        student, drawn(4, 2, seed=1) / 9, normalize(drawn(4, 2, seed=2), dim=1)
    ).sum().backward()
    assert student.grad.abs().max() > 0.01
    assert (student.grad * student).sum(dim=1).abs().max() < 1e-12


def test_kd_has_no_weight_in_the_first_epoch():
    kd_pp = method(2, warmup_epochs=20, kd_weight=3.0)
    outputs = [Output(drawn(4, 3, seed=s), {"pooled": drawn(4, 2, seed=s)}) for s in (0, 1)]
    terms = {epoch: kd_pp(batch(epoch), outputs[0], (outputs[1],))["kd"] for epoch in (1, 11, 99)}
    full = 3.0 * kd_loss(outputs[0].logits, outputs[1].logits, 4.0)
    assert not terms[1].any()
    torch.testing.assert_close(terms[11], full / 2)
    torch.testing.assert_close(terms[99], full)


def test_dropout_is_drawn_and_only_while_training():
    kd_pp = method(6, dropout=0.5)
    mask = kd_pp.draw(batch(1.0), torch.Generator().manual_seed(0))
    assert mask.shape == (4, 6)
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    feature = Output(drawn(4, 3), {"pooled": drawn(4, 6)})
    kept, dropped = (kd_pp.embedded(batch(1.0, m), feature) for m in (None, mask.double()))
    assert not torch.equal(kept, dropped)
    kd_pp.eval()
    kept, dropped = (kd_pp.embedded(batch(1.0, m), feature) for m in (None, mask.double()))
    assert torch.equal(kept, dropped)
    assert method(2).draw(batch(1.0), torch.Generator()) is None, "equal widths need no embedding"


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.dropout must be 0 or more and below 1"):
        KDPlusPlus(dropout=1.0)
