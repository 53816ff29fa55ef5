import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods.ofd import OFD, negative_mean, partial_l2
from kdbench.types import Affine, Batch, NetworkProbe, Output, Probe

BATCH = Batch(torch.empty(2, 0), torch.tensor([0, 1]), torch.arange(2), torch.tensor(1.0))


def mean_of_negatives(mean: float, deviation: float) -> float:
    """E[t | t < 0] of t ~ N(mean, deviation^2), by summing the density."""
    t = torch.linspace(-40, 0, 400_001, dtype=torch.float64)
    density = torch.exp(-0.5 * ((t - mean) / deviation).square())
    return float((t * density).sum() / density.sum())


def test_margins_are_means_of_the_negative_values():
    weight, bias = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, -1.0, 1.0])
    pairs = zip(weight.tolist(), bias.tolist(), strict=True)
    expected = [mean_of_negatives(mean, abs(deviation)) for deviation, mean in pairs]
    margin = negative_mean(Affine(weight, bias))
    torch.testing.assert_close(margin.flatten(), torch.tensor(expected), rtol=1e-3, atol=0)


def test_margins_of_channels_that_are_hardly_ever_negative():
    weight, bias = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([4.0, 1.0, -1.0, 0.0])
    margin = negative_mean(Affine(weight, bias)).flatten()
    torch.testing.assert_close(margin, torch.tensor([-3.0, 0.0, -1.0, 0.0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (1.0, 3.0, 4.0),  # positive target: plain squares
        (5.0, 3.0, 4.0),
        (1.0, -0.2, 1.44),  # target between margin and 0, student above it
        (-0.3, -0.2, 0.0),  # below it: left alone
        (1.0, -9.0, 2.25),  # target below the margin -0.5: the margin is the target
        (-0.4, -9.0, 0.01),
        (-0.6, -9.0, 0.0),
    ],
)
def test_partial_l2_leaves_a_low_enough_student_alone(student, teacher, expected):
    maps = [torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (student, teacher)]
    loss = partial_l2(*maps, torch.full((1, 1, 1), -0.5, dtype=torch.float64))
    torch.testing.assert_close(loss, torch.tensor([expected], dtype=torch.float64))


def probe(norms: tuple[Affine, ...]) -> Probe:
    shapes = {f"stage{n}{end}": torch.Size([2, 4, 4]) for n in (1, 2, 3) for end in ("", "_pre")}
    network = NetworkProbe(shapes, stage_norms=norms)
    return Probe(network, (network,), 3, torch.tensor([0, 1, 2]))


def test_deeper_stages_weigh_twice_as_much():
    """A teacher of 1 everywhere and connectors that answer 0: each stage has 2 * 4 * 4 errors."""
    method = OFD(ofd_weight=1e-3)
    method.setup(probe(tuple(Affine(torch.ones(2), torch.zeros(2)) for _ in range(3))))
    names = [f"stage{n}_pre" for n in (1, 2, 3)]
    assert set(method.state_dict()) >= {f"margin_{name}" for name in names}
    for connector in method.connectors.values():
        torch.nn.init.zeros_(connector[0].weight)
    logits = torch.zeros(2, 3)
    ones = {name: torch.ones(2, 2, 4, 4) for name in names}
    terms = method(BATCH, Output(logits, ones), (Output(logits, ones),))
    expected = 1e-3 * 32 * (1 / 4 + 1 / 2 + 1)
    torch.testing.assert_close(terms["ofd"], torch.full((2,), expected))


def test_a_teacher_without_norms_is_refused():
    with pytest.raises(ConfigError, match="method=ofd needs the BN before each stage's last ReLU"):
        OFD().setup(probe(()))
