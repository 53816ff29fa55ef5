import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods.reviewkd import Fusion, ReviewKD, hierarchical_context_loss
from kdbench.types import Batch, NetworkProbe, Output, Probe


def maps(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("side", [8, 4, 3, 1])
def test_a_constant_difference_costs_its_square_at_every_size(side):
    teacher = maps(0, 2, 3, side, side)
    offset = torch.tensor([0.0, 0.5], dtype=torch.float64)
    loss = hierarchical_context_loss(teacher + offset[:, None, None, None], teacher)
    torch.testing.assert_close(loss, offset.square(), rtol=1e-12, atol=1e-12)


def test_a_difference_that_cancels_costs_at_full_size_only():
    """A chequerboard vanishes in every average of 2x2: weight 1 of 1 + 1/2 + 1/4 + 1/8."""
    board = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).double() * 2 - 1
    loss = hierarchical_context_loss(board.expand(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    torch.testing.assert_close(loss, torch.tensor([8 / 15], dtype=torch.float64))


def test_fusion_weighs_the_two_maps_by_attention():
    fusion = Fusion(3, 4, 5, deepest=False).double().eval()
    with torch.no_grad():
        fusion.attention.weight.zero_()
        fusion.attention.bias.copy_(torch.tensor([0.0, 100.0]))  # sigmoid: a half, and 1
    feature, deeper = maps(0, 2, 3, 2, 2), maps(1, 2, 4, 1, 1)
    compared, passed = fusion(feature, deeper, (4, 4))
    expected = fusion.reduce(feature) / 2 + deeper
    expected = expected.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(passed, expected)
    assert compared.shape == (2, 5, 4, 4)


def method_and_outputs() -> tuple[ReviewKD, Output, Output]:
    torch.manual_seed(0)
    student = {"stage1": maps(0, 2, 3, 4, 4), "stage2": maps(1, 2, 4, 2, 2)}
    teacher = {"stage1_pre": maps(2, 2, 5, 8, 8), "stage2_pre": maps(3, 2, 6, 4, 4)}
    student["pooled"], teacher["pooled"] = maps(4, 2, 7), maps(5, 2, 6)
    probes = [
        NetworkProbe({name: value.shape[1:] for name, value in taps.items()})
        for taps in (
            student,
            teacher | {"stage1": maps(0, 1, 5, 8, 8), "stage2": maps(0, 1, 6, 4, 4)},
        )
    ]
    method = ReviewKD(warmup_epochs=20)
    method.setup(Probe(probes[0], (probes[1],), 3, torch.tensor([0, 1, 2])))
    logits = torch.zeros(2, 3, dtype=torch.float64)
    return method.double().eval(), Output(logits, student), Output(logits, teacher)


def test_warm_up_counts_epochs_from_one():
    method, student, teacher = method_and_outputs()
    labels = torch.tensor([0, 1])
    term = {
        epoch: method(
            Batch(torch.empty(0), labels, torch.arange(2), torch.tensor(float(epoch))),
            student,
            (teacher,),
        )["reviewkd"]
        for epoch in (1, 20, 200)
    }
    torch.testing.assert_close(term[1] * 20, term[20], rtol=1e-6, atol=0)  # epochs are float32
    torch.testing.assert_close(term[20], term[200])


def test_a_teacher_without_maps_before_the_activation_is_refused():
    probe = NetworkProbe({"stage1": torch.Size([3, 4, 4]), "pooled": torch.Size([3])})
    with pytest.raises(ConfigError, match="a network has no tap 'stage1_pre'"):
        ReviewKD().setup(Probe(probe, (probe,), 3, torch.tensor([0, 1, 2])))
