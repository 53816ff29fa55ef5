import copy

import pytest
import torch
from torch import nn

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss
from kdbench.methods.fcfd import FCFD
from kdbench.networks.adapters import bridge
from kdbench.networks.partial_forward import Tail, is_rectified
from kdbench.networks.resnet import resnet8, resnet14
from kdbench.networks.wrn import wrn_16_1
from kdbench.types import Batch, NetworkProbe, Probe

LABELS = torch.tensor([0, 2, 1, 1])
IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
STAGES = ["stage1", "stage2", "stage3"]


def probe_of(network: nn.Module) -> NetworkProbe:
    with torch.no_grad():
        taps = copy.deepcopy(network).eval()(IMAGES[:1]).taps
    shapes = {name: tap.shape[1:] for name, tap in taps.items()}
    return NetworkProbe(shapes, image=IMAGES.shape[1:], network=network)


def made(student: nn.Module, teacher: nn.Module, **settings) -> FCFD:
    method = FCFD(**settings)
    method.setup(Probe(probe_of(student), (probe_of(teacher),), 3, LABELS))
    return method


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return resnet8(3), resnet14(3).eval().requires_grad_(False)


def terms_of(method: FCFD, student: nn.Module, teacher: nn.Module, epoch: float = 20.0):
    batch = Batch(IMAGES, LABELS, torch.arange(4), torch.tensor(epoch))
    return method(batch, student(IMAGES), (teacher(IMAGES),))


def test_a_path_is_one_network_up_to_a_stage_and_the_other_from_there_on():
    student, teacher = networks()
    student.eval()
    method = made(student, teacher, drawn_paths=4, kd_weight=0.0).eval()
    own, theirs = student(IMAGES), teacher(IMAGES)
    losses, distances = [], []
    for stage in (0, 1):
        crossed = method.into_teacher[stage](own.taps[f"{STAGES[stage]}_pre"])
        path = teacher.resume(stage + 1, torch.relu(crossed))
        losses.append(kd_loss(path.logits, theirs.logits, 4.0))
        distances += [(path.taps[f"{s}_pre"], f"{s}_pre") for s in STAGES[stage + 1 :]]
        crossed = method.into_student[stage](theirs.taps[f"{STAGES[stage]}_pre"])
        losses.append(
            kd_loss(student.resume(stage + 1, torch.relu(crossed)).logits, theirs.logits, 4.0)
        )
    for stage, name in enumerate(STAGES):
        distances.append((method.into_teacher[stage](own.taps[f"{name}_pre"]), f"{name}_pre"))
    expected = 0.0
    for feature, tap in distances:
        expected += (feature - theirs.taps[tap]).square().mean()
        if tap == "stage3_pre":
            pooled = [torch.relu(m).mean(dim=(2, 3)) for m in (feature, theirs.taps[tap])]
            expected += (pooled[0] - pooled[1]).square().mean()
    terms = terms_of(method, student, teacher)
    torch.testing.assert_close(terms["mixture"], sum(losses))
    torch.testing.assert_close(terms["feature"].mean(), 5 * expected)
    half = made(student, teacher).eval()
    half.load_state_dict(method.state_dict())
    torch.testing.assert_close(terms_of(half, student, teacher)["mixture"], sum(losses) / 2)
    warming = terms_of(method, student, teacher, epoch=1.0)["feature"]
    torch.testing.assert_close(20 * warming, terms["feature"])


def test_mixed_paths_train_the_student_and_leave_no_trace_in_either():
    student, teacher = networks()
    method = made(student.train(), teacher, ce_weight=0.0, kd_weight=0.0, feature_weight=0.0)
    apart, output = copy.deepcopy(student), copy.deepcopy(student)
    output(IMAGES)
    before = copy.deepcopy(teacher.state_dict())
    terms = terms_of(method, student, teacher)
    terms["mixture"].mean().backward()
    assert student.layer3[0].conv1.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for name, buffer in output.named_buffers():
        assert torch.equal(dict(student.named_buffers())[name], buffer), name
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    Tail(apart).apart(1, torch.rand(4, 16, 16, 16))
    for name, buffer in networks()[0].named_buffers():
        assert torch.equal(dict(apart.named_buffers())[name], buffer), name


def test_neither_network_is_part_of_the_method():
    student, teacher = networks()
    method = made(student, teacher)
    bridges = ("into_teacher", "into_student")
    assert all(name.startswith(bridges) for name in method.state_dict())
    assert method.double().tails[1].network.fc.weight.dtype == torch.float64


def test_knows_whether_a_stage_ends_in_a_relu():
    torch.manual_seed(0)
    assert is_rectified(resnet8(3), IMAGES.shape[1:], STAGES)
    assert not is_rectified(wrn_16_1(3), IMAGES.shape[1:], STAGES)


def test_bridges_lead_to_half_and_double_sides():
    for source, target in (((3, 8, 8), (5, 4, 4)), ((3, 4, 4), (5, 8, 8)), ((3, 4, 4), (5, 4, 4))):
        assert bridge(source, target)(torch.rand(2, *source)).shape[1:] == target
    with pytest.raises(ConfigError, match="no bridge leads from a 8x8 map to one of 2x2"):
        bridge((3, 8, 8), (5, 2, 2))


def test_refuses_networks_that_cannot_be_resumed():
    student, teacher = networks()
    foreign = probe_of(teacher)._replace(network=nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="the teacher cannot be resumed after a stage"):
        FCFD().setup(Probe(probe_of(student), (foreign,), 3, LABELS))
    flat = probe_of(student)
    flat = flat._replace(taps={"stage1": flat.taps["stage1"]})
    with pytest.raises(ConfigError, match="share one stage"):
        FCFD().setup(Probe(flat, (flat,), 3, LABELS))
