"""Against NumPy, line by line as the released code and as the notes state the formula."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.methods.mlkd import MLKD, lower_half
from kdbench.types import Batch, Output

TEMPERATURES = (4.0, 3.0, 5.0, 2.0, 6.0)


def logits(seed: int, samples: int, classes: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(2, samples, classes, generator=generator, dtype=torch.float64)


def loss(mode: str, student: Tensor, teacher: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The mean of every term, as the step takes it."""
    index = torch.arange(len(labels))
    batch = Batch(torch.empty(0), labels, index, torch.tensor(1.0))
    terms = MLKD(mode=mode)(batch, Output(student, {}), (Output(teacher, {}),))
    return {name: term.mean() for name, term in terms.items()}


def softmax(z: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp(z / temperature)
    return powers / powers.sum(1, keepdims=True)


def kl(s: np.ndarray, t: np.ndarray, temperature: float) -> np.ndarray:
    p, q = softmax(t, temperature), softmax(s, temperature)
    return temperature**2 * (p * np.log(p / q)).sum(1)


def squares(s: np.ndarray, t: np.ndarray, temperature: float, of_classes: bool) -> np.ndarray:
    """Squared differences of the correlation matrices, over their size."""
    p, q = softmax(t, temperature), softmax(s, temperature)
    p, q = (p.T, q.T) if of_classes else (p, q)
    return (p @ p.T - q @ q.T) ** 2 / len(p)


def reference(mode: str, student: Tensor, teacher: Tensor) -> dict[str, float]:
    (sw, ss), (tw, ts) = student.numpy(), teacher.numpy()
    p = softmax(tw, 1.0)
    m = p.max(1) <= np.percentile(p.max(1), 50)
    c = p.sum(0) <= np.percentile(p.sum(0), 50)
    weak, strong = (sw, tw), (ss, ts)
    if mode == "released":
        instance = sum((kl(*weak, t).mean() * m).mean() for t in TEMPERATURES)
        for view, t in ((strong, 4.0), (strong, 3.0), (strong, 5.0), (weak, 2.0), (weak, 6.0)):
            instance += kl(*view, t).mean()
        classes = sum((squares(*weak, t, True).sum() * c).mean() for t in TEMPERATURES)
        samples = sum((squares(*weak, t, False).sum() * m).mean() for t in TEMPERATURES)
        found = {"instance": instance}
    else:
        found = {
            "instance": sum(kl(*strong, t).mean() for t in TEMPERATURES),
            "weak_instance": sum((kl(*weak, t) * m).mean() for t in TEMPERATURES),
        }
        classes = sum(
            (squares(*weak, t, True) * c).sum() + squares(*strong, t, True).sum()
            for t in TEMPERATURES
        )
        samples = sum(
            (squares(*view, t, False) * m).sum() for t in TEMPERATURES for view in (weak, strong)
        )
    return {name: 0.9 * v for name, v in (found | {"class": classes, "batch": samples}).items()}


@pytest.mark.parametrize("samples", [8, 7], ids=["even batch", "odd batch"])
@pytest.mark.parametrize("mode", ["released", "paper"])
def test_every_term_is_the_reference_s(mode, samples):
    student, teacher = logits(0, samples), logits(1, samples, classes=10)
    labels = torch.arange(samples) % 10
    found = loss(mode, student, teacher, labels)
    expected = reference(mode, student, teacher)
    hit = -np.log([softmax(view, 1.0)[range(samples), labels] for view in student.numpy()])
    expected["ce"] = 0.1 * hit.mean(1).sum()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-10), name


def test_a_student_like_its_teacher_has_the_label_term_alone():
    teacher = logits(1, 6)
    for mode in ("released", "paper"):
        found = loss(mode, teacher.clone(), teacher, torch.arange(6))
        assert found.pop("ce") > 0
        assert all(abs(value) < 1e-12 for value in found.values())


def test_the_release_moves_two_temperatures_to_the_weak_view():
    """The strong view is matched at 4, 3 and 5 only: 2 and 6 do not see it."""
    student, teacher = logits(0, 6), logits(1, 6)
    method = MLKD()
    batch = Batch(torch.empty(0), torch.arange(6), torch.arange(6), torch.tensor(1.0))
    rows = method(batch, Output(student, {}), (Output(teacher, {}),))["instance"]
    strong = sum(kl(student[1].numpy(), teacher[1].numpy(), t) for t in (4.0, 3.0, 5.0))
    torch.testing.assert_close(rows[1], torch.from_numpy(2 * 0.9 * strong), rtol=1e-12, atol=0)


def test_the_gate_keeps_half_of_an_even_number_and_all_that_tie():
    assert lower_half(torch.tensor([0.4, 0.1, 0.3, 0.2])).tolist() == [0, 1, 0, 1]
    assert lower_half(torch.tensor([0.4, 0.1, 0.3])).tolist() == [0, 1, 1]
    assert lower_half(torch.tensor([0.1, 0.2, 0.2, 0.2])).tolist() == [1, 1, 1, 1]


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.kd_weight must be 0 or more"):
        MLKD(kd_weight=-1)
