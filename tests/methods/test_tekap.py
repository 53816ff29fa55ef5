import torch

from kdbench.losses import kd_loss
from kdbench.methods.tekap import TeKAP
from kdbench.types import Batch, NetworkProbe, Probe
from support.logit_batches import LABELS, B, K, logits, terms_of


def test_matches_the_formula_by_hand():
    student, teacher = logits(0), logits(1)
    noise = torch.stack([logits(seed, scale=1.0) for seed in (2, 3, 4)], dim=1)
    terms = terms_of(TeKAP(), student, teacher, drawn=noise)
    torch.testing.assert_close(terms["kd"], 0.9 * kd_loss(student, teacher, 4.0))
    noisy = [kd_loss(student, 0.9 * teacher + 0.1 * noise[:, i], 4.0) for i in range(3)]
    torch.testing.assert_close(terms["noisy"], 0.9 * 0.8 * sum(noisy))


def test_its_weight_is_that_of_its_control():
    """Without noise every teacher is the same: KD at 3.06."""
    method = TeKAP(teacher_scale=1.0, noise_scale=0.0)
    student, teacher = logits(0), logits(1)
    terms = terms_of(method, student, teacher, drawn=torch.zeros(B, 3, K))
    torch.testing.assert_close(terms["kd"] + terms["noisy"], 3.06 * kd_loss(student, teacher, 4.0))


def test_noise_is_drawn_anew_and_from_the_generator():
    method = TeKAP()
    method.setup(Probe(NetworkProbe({}), (NetworkProbe({}),), K, LABELS))
    batch = Batch(torch.empty(0), LABELS, torch.arange(B), torch.tensor(1.0))
    generator = torch.Generator().manual_seed(0)
    first, second = method.draw(batch, generator), method.draw(batch, generator)
    assert first.shape == (B, 3, K)
    assert not torch.equal(first, second)
    assert torch.equal(method.draw(batch, torch.Generator().manual_seed(0)), first)
