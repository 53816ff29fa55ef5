import torch
from timm.loss import BinaryCrossEntropy

from kdbench.methods.bce import BCE
from kdbench.types import Batch, Output


def test_it_is_timm_s_with_hard_and_soft_labels():
    logits, labels, targets = torch.randn(4, 5), torch.tensor([0, 3, 1, 2]), torch.rand(4, 5)
    batch = Batch(logits, labels, labels, torch.tensor(1.0))
    theirs = BinaryCrossEntropy(smoothing=0.0)
    for given, known in ((batch, labels), (batch._replace(targets=targets), targets)):
        found = BCE()(given, Output(logits, {}), ())["ce"]
        torch.testing.assert_close(found.mean(), theirs(logits, known))
