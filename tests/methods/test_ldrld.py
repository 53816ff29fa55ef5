import math

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods.ldrld import LDRLD, ldrld_losses, pair_weights
from kdbench.types import NetworkProbe, Probe
from support.logit_batches import LABELS, K, logits, terms_of


def divergence(own: list[float], theirs: list[float], temperature: float) -> float:
    soft = [
        [math.exp(z / temperature) / sum(math.exp(x / temperature) for x in logits) for z in logits]
        for logits in (theirs, own)
    ]
    return temperature**2 * sum(p * math.log(p / q) for p, q in zip(*soft, strict=True))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_matches_the_formula_by_hand(count):
    student, teacher = logits(0), logits(1)
    local, rest = [], []
    for own, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        order = sorted(range(K), key=lambda k, own=own: -own[k])
        own, theirs = [own[k] for k in order], [theirs[k] for k in order]
        first, others = slice(0, count), slice(count, K)
        weights = [
            (i, j, 2 * math.exp(-0.05 * (i + j + 2)) / (1.5 + j - i))
            for i in range(count)
            for j in range(i + 1, count)
        ]
        pairs = sum(
            w * divergence([own[i], own[j]], [theirs[i], theirs[j]], 4) for i, j, w in weights
        )
        together = divergence(own[first], theirs[first], 4) * (weights[0][2] if count == 2 else 1)
        local.append((pairs + together) / (len(weights) + 1))
        rest.append(divergence(own[others], theirs[others], 4))
    found = ldrld_losses(student, teacher, pair_weights(count), 4.0)
    assert found[0].tolist() == pytest.approx(local, rel=1e-9)
    assert found[1].tolist() == pytest.approx(rest, rel=1e-9)


def test_with_all_classes_ranked_nothing_remains():
    assert torch.equal(terms_of(LDRLD(top_k=K), logits(0), logits(1))["rest"], torch.zeros(6))


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.top_k must be 2 or more"):
        LDRLD(top_k=1)
    probe = Probe(NetworkProbe({}), (NetworkProbe({}),), K, LABELS)
    with pytest.raises(ConfigError, match=r"method.top_k=11 is more than the 10 classes"):
        LDRLD(top_k=K + 1).setup(probe)
