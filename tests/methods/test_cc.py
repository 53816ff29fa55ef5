import torch

from kdbench.methods.cc import cc_loss


def test_formula():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    expected = 0.0
    for i in range(4):
        for d in range(3):
            here, following = (abs(student[n, d] - teacher[n, d]) for n in (i, i + 1))
            expected += here * following / 4
    torch.testing.assert_close(cc_loss(student, teacher), expected)


def test_a_batch_of_one_has_no_neighbours():
    assert cc_loss(torch.ones(1, 3), torch.zeros(1, 3)) == 0
