import torch

from kdbench.methods.srrl import SRRL
from kdbench.types import Affine, Batch, NetworkProbe, Output, Probe

BATCH, WIDTH, TEACHER_WIDTH, CLASSES = 4, 3, 5, 6


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CLASSIFIER = Affine(drawn(CLASSES, TEACHER_WIDTH, seed=1), drawn(CLASSES, seed=2))


def method(**settings: float) -> SRRL:
    taps = {"map": torch.Size([WIDTH, 2, 2]), "pooled": torch.Size([WIDTH])}
    student = NetworkProbe(taps)
    taps = {"map": torch.Size([TEACHER_WIDTH, 4, 4]), "pooled": torch.Size([TEACHER_WIDTH])}
    labels = torch.arange(BATCH)
    made = SRRL(**settings)
    made.setup(Probe(student, (NetworkProbe(taps, CLASSIFIER),), CLASSES, labels))
    return made.double()


BATCH_OF_4 = Batch(torch.empty(0), torch.arange(BATCH), torch.arange(BATCH), torch.tensor(1.0))


def test_follows_the_formula():
    srrl = method(feature_weight=2.0, logit_weight=3.0)
    student_map, feature = drawn(BATCH, WIDTH, 2, 2), drawn(BATCH, TEACHER_WIDTH, seed=3).relu()
    logits = drawn(BATCH, CLASSES, seed=4)
    student = Output(drawn(BATCH, CLASSES, seed=5), {"map": student_map})
    terms = srrl(BATCH_OF_4, student, (Output(logits, {"pooled": feature}),))
    conv, _, _ = srrl.connector
    before = torch.einsum("ds,bshw->bdhw", conv.weight[:, :, 0, 0], student_map)
    mean, var = before.mean(dim=(0, 2, 3)), before.var(dim=(0, 2, 3), correction=0)
    active = ((before - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]).relu()
    connected = active.mean(dim=(2, 3))
    for b in range(BATCH):
        gaps = [(connected[b, d] - feature[b, d]) ** 2 for d in range(TEACHER_WIDTH)]
        torch.testing.assert_close(terms["feature"][b], 2.0 * sum(gaps) / TEACHER_WIDTH)
        through = [CLASSIFIER.weight[k] @ connected[b] + CLASSIFIER.bias[k] for k in range(CLASSES)]
        gaps = [(z - t) ** 2 for z, t in zip(through, logits[b], strict=True)]
        torch.testing.assert_close(terms["logit"][b], 3.0 * sum(gaps) / CLASSES)


def test_equal_features_leave_nothing():
    srrl = method()
    student_map = drawn(BATCH, WIDTH, 2, 2)
    feature = srrl.connector(student_map).mean(dim=(2, 3))
    logits = feature @ CLASSIFIER.weight.T + CLASSIFIER.bias
    student = Output(drawn(BATCH, CLASSES), {"map": student_map})
    terms = srrl(BATCH_OF_4, student, (Output(logits, {"pooled": feature}),))
    assert terms["feature"].max() < 1e-25
    assert terms["logit"].max() < 1e-25
