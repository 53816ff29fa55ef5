import math

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss
from kdbench.methods.crd import CRD, nce_loss
from kdbench.types import Batch, NetworkProbe, Output, Probe

LABELS = torch.tensor([2, 0, 1, 0, 2, 2, 1, 0, 2, 2, 1, 0])  # 4, 3 and 5 of the three classes
WIDTHS = {"student": 6, "teacher": 9}


def built(labels: torch.Tensor = LABELS, **settings) -> CRD:
    torch.manual_seed(0)
    method = CRD(**{"embedding_dim": 4, "num_negatives": 5} | settings)
    student, teacher = (NetworkProbe({"pooled": torch.Size((w,))}) for w in WIDTHS.values())
    method.setup(Probe(student, (teacher,), 3, labels))
    return method


def step_of(method: CRD, rows: list[int], seed: int = 0) -> tuple[Batch, Output, Output]:
    generator = torch.Generator().manual_seed(seed)
    index = torch.tensor(rows)
    batch = Batch(torch.empty(0), LABELS[index], index, torch.tensor(1.0))
    batch = batch._replace(drawn=method.draw(batch, generator))
    outputs = [
        Output(torch.randn(len(rows), 3), {"pooled": torch.randn(len(rows), width)})
        for width in WIDTHS.values()
    ]
    outputs[0].taps["pooled"].requires_grad_()
    return batch, *outputs


def naive_side(anchor, positive, negatives, constant, num_samples):
    """The paper's loss of one sample: its odds against M draws from uniform noise."""
    count = len(negatives)

    def is_data(entry):
        score = (anchor @ entry / 0.07).exp() / constant
        return score / (score + count / num_samples + 1e-7)

    def is_noise(entry):
        score = (anchor @ entry / 0.07).exp() / constant
        return count / num_samples / (score + count / num_samples + 1e-7)

    return -is_data(positive).log() - sum(is_noise(entry).log() for entry in negatives)


def test_two_steps_by_hand():
    """Loss, constants, banks and gradients, from rows gathered one by one."""
    method = built().double()
    banks = {name: getattr(method, f"bank_{name}").clone() for name in WIDTHS}
    constants: dict[str, torch.Tensor] = {}
    for rows in ([3, 0, 7], [7, 1]):
        batch, student, teacher = step_of(method, rows)
        features = {"student": student.taps["pooled"].double(), "teacher": teacher.taps["pooled"]}
        embeds = {"student": method.embed_student, "teacher": method.embed_teacher}
        v = {name: embeds[name](features[name].double()) for name in WIDTHS}
        v = {name: x / x.norm(dim=1, keepdim=True) for name, x in v.items()}
        expected = []
        means: dict[str, list] = {"student": [], "teacher": []}
        for n, row in enumerate(rows):
            loss = 0.0
            for name, other in (("student", "teacher"), ("teacher", "student")):
                entries = banks[other][torch.tensor([row, *batch.drawn[n]])]
                means[name].append((entries @ v[name][n].detach() / 0.07).exp().mean() * 12)
                constant = constants.get(name, means[name][-1])
                loss += naive_side(v[name][n], entries[0], entries[1:], constant, 12)
            expected.append(0.8 * loss)
        for name in WIDTHS:
            constants.setdefault(name, sum(means[name]) / len(rows))
            for n, row in enumerate(rows):
                mixed = 0.5 * banks[name][row] + 0.5 * v[name][n].detach()
                banks[name][row] = mixed / mixed.norm()
        outputs = [
            Output(o.logits, {"pooled": o.taps["pooled"].double()}) for o in (student, teacher)
        ]
        found = method(batch, outputs[0], (outputs[1],))["crd"]
        torch.testing.assert_close(found, torch.stack(expected))
        gradients = [
            torch.autograd.grad(loss.sum(), student.taps["pooled"], retain_graph=True)[0]
            for loss in (found, torch.stack(expected))
        ]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
        for name in WIDTHS:
            normaliser = getattr(method, f"normaliser_{name}")
            torch.testing.assert_close(normaliser, constants[name], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(getattr(method, f"bank_{name}"), banks[name])


def test_negatives_are_distinct_and_of_other_classes():
    """The smallest complement has 7 samples: more negatives than that are not drawn."""
    method = built(num_negatives=100)
    index = torch.arange(12)
    batch = Batch(torch.empty(0), LABELS, index, torch.tensor(1.0))
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(12, 12)
    for _ in range(200):
        drawn = method.draw(batch, generator)
        assert drawn.shape == (12, 7)
        assert all(len(set(row.tolist())) == 7 for row in drawn)
        seen += torch.zeros(12, 12).scatter(1, drawn, 1.0)
    for n in range(12):
        others = LABELS[n] != LABELS
        assert (seen[n, ~others] == 0).all()
        share = seen[n, others] / 200
        # Every sample of another class equally often, within five standard errors.
        expected = 7 / int(others.sum())
        error = math.sqrt(expected * (1 - expected) / 200)
        assert (share - expected).abs().max() <= 5 * error


def test_pairs_of_negatives_are_as_often_together_as_in_a_uniform_choice():
    """With equal classes a sample's set of negatives is uniform: 2 of 4 others, 6 pairs."""
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    method = built(labels, num_negatives=2)
    batch = Batch(torch.empty(0), labels[:1], torch.arange(1), torch.tensor(1.0))
    generator = torch.Generator().manual_seed(0)
    pairs: dict[tuple, int] = {}
    for _ in range(1200):
        pair = tuple(sorted(method.draw(batch, generator)[0].tolist()))
        pairs[pair] = pairs.get(pair, 0) + 1
    assert len(pairs) == 6
    assert all(abs(count - 200) < 5 * math.sqrt(1200 * 5 / 36) for count in pairs.values())


def test_nce_is_precise_in_float32():
    """Negatives' scores are tiny beside the noise; 16384 logarithms of nearly 1 are summed."""
    scores = torch.rand(2, 16385, generator=torch.Generator().manual_seed(0)).double() * 1e-4
    exact = nce_loss(scores, 50000)
    torch.testing.assert_close(nce_loss(scores.float(), 50000).double(), exact, rtol=1e-6, atol=0)


def test_continues_from_its_state():
    first, second = built(), built()
    second.load_state_dict({key: torch.zeros_like(v) for key, v in second.state_dict().items()})
    first(*unpacked(step_of(first, [3, 0, 7])))
    second.load_state_dict(first.state_dict())
    step = step_of(first, [1, 7])
    assert torch.equal(second.draw(step[0], torch.Generator().manual_seed(0)), step[0].drawn)
    assert torch.equal(first(*unpacked(step))["crd"], second(*unpacked(step))["crd"])


def unpacked(step: tuple[Batch, Output, Output]):
    batch, student, teacher = step
    return batch, student, (teacher,)


def test_half_precision_banks():
    full, half = built(), built(bank_dtype="bfloat16")
    step = step_of(full, [3, 0, 7])
    terms = [method(*unpacked(step))["crd"] for method in (full, half)]
    torch.testing.assert_close(*terms, rtol=0.05, atol=0)
    assert half.bank_student.dtype == torch.bfloat16
    torch.testing.assert_close(half.bank_student.float(), full.bank_student, rtol=0.01, atol=0.01)


def test_with_kd():
    method = built(kd_weight=1.0)
    batch, student, teacher = step_of(method, [3, 0, 7])
    terms = method(batch, student, (teacher,))
    expected = kd_loss(student.logits, teacher.logits, 4.0)
    torch.testing.assert_close(terms["kd"], expected, rtol=1e-4, atol=1e-4)
    assert "kd" not in built()(batch, student, (teacher,))


def test_refuses_a_single_class():
    with pytest.raises(ConfigError, match="two classes or more"):
        built(torch.zeros(12).long())


def test_refuses_a_bank_that_never_moves():
    with pytest.raises(ConfigError, match=r"method.bank_momentum must be in \[0, 1\), not 1.0"):
        built(bank_momentum=1.0)
