import pytest
import torch
from timm.task.token_distillation import TokenDistillationTask
from torch import nn

from kdbench.assembly.probes import check_taps
from kdbench.errors import ConfigError
from kdbench.methods.deit_token import DeiTToken
from kdbench.networks.tapped import timm_model
from kdbench.types import Batch, NetworkProbe, Output

SMALL = {"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 2}
LABELS = torch.tensor([1, 0, 3, 2])


@pytest.mark.parametrize("distillation", ["hard", "soft"])
def test_it_is_timm_s_task(distillation):
    torch.manual_seed(0)
    student = timm_model("deit_tiny_distilled_patch16_224", num_classes=5, settings=SMALL)
    images, logits = torch.randn(4, 3, 32, 32), torch.randn(4, 5)
    method = DeiTToken(distillation, ce_weight=0.7, token_weight=0.3, temperature=3.0)
    batch = Batch(images, LABELS, torch.arange(4), torch.tensor(1.0))
    terms = method(batch, student(images), (Output(logits, {}),))
    for hook in (*student._forward_hooks, *student._forward_pre_hooks):
        student._forward_hooks.pop(hook, None)
        student._forward_pre_hooks.pop(hook, None)

    class Known(nn.Module):
        def forward(self, images):
            return logits

    task = TokenDistillationTask(
        student,
        Known(),
        nn.CrossEntropyLoss(),
        distill_type=distillation,
        task_loss_weight=0.7,
        temperature=3.0,
        verbose=False,
    )
    task.teacher.normalize_input = lambda images, *_: images
    expected = task.train()(images, LABELS)
    torch.testing.assert_close(sum(term.mean() for term in terms.values()), expected["loss"])


def test_a_student_without_a_token_is_refused():
    plain = NetworkProbe(taps={"pooled": torch.Size([8])})
    with pytest.raises(ConfigError, match="the student has no tap 'head'"):
        check_taps(DeiTToken(), {"the student": plain, "teacher": plain})
