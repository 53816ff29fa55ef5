"""What `Distiller` promises to people with a loop of their own."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from torch import nn

import kdbench
from kdbench.distillation.tap_plan import plan_taps
from kdbench.errors import ConfigError, KdbenchError
from kdbench.methods.kd import KD
from kdbench.networks.resnet import resnet8, resnet14
from support.commands import ROOT

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3])
HEAVY = (
    "hydra",
    "omegaconf",
    "wandb",
    "matplotlib",
    "sklearn",
    "scipy",
    "timm",
    "rich",
    "PIL",
)


class Small(nn.Module):
    """A network of nobody's library."""

    def __init__(self, answer=lambda logits: logits) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.drop, self.head, self.answer = nn.Dropout(0.5), nn.Linear(8, 10), answer

    def forward(self, images):
        return self.answer(self.head(self.drop(self.body(images).mean((2, 3)))))


def distiller(method="kd", student=None, teacher="one", **given):
    torch.manual_seed(1)
    student = resnet8(num_classes=10) if student is None else student
    teacher = resnet14(num_classes=10) if teacher == "one" else teacher
    return kdbench.Distiller(method, student, teacher, example=IMAGES[:2], **given)


def test_state_and_parameters_are_the_student_s_and_the_recipe_s():
    found = distiller("fitnet")
    assert {key.partition(".")[0] for key in found.state_dict()} == {"_student", "method"}
    own = sum(p.numel() for p in found.student.parameters())
    adapter = sum(p.numel() for p in found.method.parameters())
    assert adapter > 0
    assert sum(p.numel() for p in found.trainable_parameters()) == own + adapter
    assert sum(p.numel() for p in found.parameters()) == own + adapter
    other = distiller("fitnet", seed=5)
    other.load_state_dict(found.state_dict())
    assert torch.equal(other.eval()(IMAGES, LABELS)[0], found.eval()(IMAGES, LABELS)[0])


def test_teachers_stay_in_eval_mode_and_go_along():
    teacher = resnet14(num_classes=10)
    found = distiller(teacher=teacher).train()
    assert found.student.training
    assert not teacher.training
    found.double()
    assert next(teacher.parameters()).dtype == torch.float64
    loss, logs = found(IMAGES.double(), LABELS)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert logs.keys() == {"loss", "ce", "kd"}
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in logs.values())
    torch.testing.assert_close(logs["ce"] + logs["kd"], loss.float())
    assert found.logits.shape == (4, 10)


def test_the_loss_is_that_of_the_recipe():
    student, teacher = Small().eval(), resnet14(num_classes=10).eval()
    found = distiller(student=student, teacher=teacher, temperature=2.0, kd_weight=0.5).eval()
    logits, targets = student(IMAGES) / 2, teacher(IMAGES).logits / 2
    kl = nn.functional.kl_div(logits.log_softmax(1), targets.softmax(1), reduction="batchmean")
    torch.testing.assert_close(found(IMAGES, LABELS)[1]["kd"], 0.5 * 4 * kl)
    own = distiller(KD(temperature=2.0, kd_weight=0.5, ce_weight=0.1), student, teacher).eval()
    torch.testing.assert_close(own(IMAGES, LABELS)[1]["kd"], 0.5 * 4 * kl)


@pytest.mark.parametrize(
    "answer",
    [
        lambda logits: (logits, None),
        lambda logits: ["features", logits],
        lambda logits: {"logits": logits},
        lambda logits: SimpleNamespace(logits=logits, loss=None),
    ],
)
def test_logits_are_found_in_what_a_network_returns(answer):
    plain, wrapped = distiller(student=Small()).eval(), distiller(student=Small(answer)).eval()
    assert torch.equal(plain(IMAGES, LABELS)[0], wrapped(IMAGES, LABELS)[0])


def test_the_student_is_the_plain_module_and_nothing_else_is_changed():
    student, teacher = Small(), Small()
    keys, forward = list(student.state_dict()), copy.deepcopy(student).eval()(IMAGES)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    found = kdbench.Distiller(
        "at", student, teacher, example=IMAGES, student_taps=TAPS, teacher_taps=TAPS
    )
    assert torch.equal(torch.get_rng_state(), before)
    found(IMAGES, LABELS)
    assert found.student is student
    assert not any(module._forward_hooks for module in student.modules())
    assert not any(module._forward_pre_hooks for module in student.modules())
    assert list(student.state_dict()) == keys
    assert student.training
    assert found.eval()(IMAGES, LABELS)[0].isfinite()
    assert forward.shape == student(IMAGES).shape


TAPS = {"stage1": "body.0", "stage2": "body.1", "stage3": "body"}


def test_features_are_found_in_torchvision_s_and_timm_s_networks():
    stages = {f"stage{i}": f"layer{i}" for i in (1, 2, 3, 4)}
    resnet = plan_taps(torchvision.models.resnet18(), None, IMAGES, "it")
    assert resnet.outputs == {"stem": "relu", **stages}
    before = {f"stage{i}_pre": f"layer{i}.1.relu" for i in (1, 2, 3, 4)}
    assert resnet.inputs == {**before, "pooled": "fc"}
    assert resnet.aliases == {"map": "stage4"}
    resnet = plan_taps(timm.create_model("resnet18"), None, IMAGES, "it")
    assert resnet.outputs == {"stem": "act1", **stages}
    assert resnet.inputs["stage3_pre"] == "layer3.1.act2"
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=10)
    plan = plan_taps(vit, None, IMAGES, "it")
    assert list(plan.outputs.values()) == ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]
    found = distiller("kd", student=vit).eval()
    assert found._student(IMAGES).taps["stage2"].shape == (4, 192, 4, 4)  # tokens as a map


def test_a_tap_before_the_activation_is_not_changed_in_place():
    found = distiller("reviewkd", torchvision.models.resnet18(num_classes=10),
                      torchvision.models.resnet34(num_classes=10))  # fmt: skip
    for network in (found._student.eval(), *found._teachers):
        taps = network(IMAGES).taps
        for stage in ("stage1", "stage2", "stage3", "stage4"):
            assert torch.equal(taps[f"{stage}_pre"].relu(), taps[stage])
            assert (taps[f"{stage}_pre"] < 0).any()
        torch.testing.assert_close(taps["map"].mean((2, 3)), taps["pooled"])
    loss, _ = found.train()(IMAGES, LABELS, epoch=1)
    loss.backward()


def test_views_index_and_several_teachers():
    two = distiller("mlkd")
    loss, _ = two(IMAGES, LABELS, views=IMAGES.flip(3), epoch=1)
    assert loss.isfinite()
    labels = torch.arange(20) % 10
    bank = distiller("crd", train_labels=labels)
    loss, _ = bank(IMAGES, labels[:4], index=torch.arange(4))
    assert loss.isfinite()
    several = distiller("aver", teacher=[resnet14(num_classes=10), Small()])
    assert several(IMAGES, LABELS)[0].isfinite()
    looks = distiller("kd_pp", train_labels=labels, train_images=lambda rows: IMAGES[rows % 4])
    assert looks(IMAGES, LABELS, epoch=1)[0].isfinite()
    assert distiller("label_smoothing", teacher=None)(IMAGES, LABELS)[0].isfinite()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"method": "kdd"}, "unknown method 'kdd': did you mean 'kd'?"),
        ({"temprature": 3}, "unknown key 'kd.temprature': did you mean 'temperature'?"),
        ({"temperature": "hot"}, "kd.temperature must be a number, not 'hot'"),
        ({"teacher": None}, "method kd reads 1 teacher(s), not 0: pass teacher=NETWORK"),
        ({"method": "ce"}, "method ce reads 0 teacher(s), not 1"),
        (
            {"method": "aver", "teacher": None},
            "reads one or more teachers, not 0: pass",
        ),
        ({"method": "crd"}, "crd keeps a row for each training image: pass train_labels=LABELS"),
        ({"method": "kd_pp"}, "features of the training images: pass train_labels=LABELS [N] and"),
        ({"student": Small(), "student_taps": {"stage1": "boddy"}}, "did you mean 'body'?"),
        ({"student_taps": {"stage1": "x"}}, "the student has no module 'x' for stage1"),
        ({"student_taps": {"stage1": "layer1"}}, "the student names its own taps"),
        ({"teacher_taps": [None, None]}, "teacher_taps has 2 entries for 1 teachers"),
        ({"method": KD(), "temperature": 2.0}, "temperature=... is for a method that is named"),
        ({"student": Small(lambda logits: "no")}, "the student must return logits [B, K]"),
        ({"method": "fitnet", "student": Small()}, "no tap 'stage2"),
    ],
)
def test_a_mistake_is_one_line(given, line):
    with pytest.raises(ConfigError) as error:
        distiller(**given)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "given", "line"),
    [
        ("dkd", {}, "dkd changes with the epoch: pass epoch=NUMBER"),
        ("mlkd", {"epoch": 1}, "mlkd compares 2 views of each image: pass views=IMAGES"),
        ("kd", {"views": IMAGES}, "kd reads one view of each image: leave views out"),
        ("dot", {}, "dot has a momentum for each gradient stream"),
    ],
)
def test_what_a_recipe_needs_is_asked_for(method, given, line):
    found = distiller(method)
    with pytest.raises(ConfigError) as error:
        found(IMAGES, LABELS, **given)
    assert line in str(error.value)


def test_the_optimizer_of_streams_follows_a_forward_pass():
    found = distiller("dot")
    optimizer = found.optimizer(lr=0.1)
    with pytest.raises(ConfigError, match="call the distiller first"):
        optimizer.step()
    before = copy.deepcopy(found.student.state_dict())
    found(IMAGES, LABELS)
    optimizer.step()
    assert not torch.equal(found.student.fc.weight, before["fc.weight"])
    with pytest.raises(ConfigError, match="crd keeps a row"):
        distiller("crd", train_labels=LABELS)(IMAGES, LABELS)


def test_the_optimizer_of_streams_moves_nothing_by_a_loss_that_is_not_finite():
    found = distiller("dot", student=Small(), teacher=Small())
    optimizer = found.optimizer(lr=0.1)
    before = copy.deepcopy(dict(found.student.named_parameters()))
    found(IMAGES * float("nan"), LABELS)
    with pytest.raises(KdbenchError, match="a loss or a gradient is not finite: lower the learn"):
        optimizer.step()
    for name, parameter in found.student.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_under_autocast_losses_are_float32():
    found = distiller("dkd", student=Small(), teacher=Small())
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = found(IMAGES, LABELS, epoch=1)
    assert loss.dtype == torch.float32
    loss.backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # while torch traces it
def test_it_compiles_and_is_distributed(tmp_path):
    found = distiller("kd", student=Small().eval(), teacher=Small()).eval()
    expected = found(IMAGES, LABELS)[0]
    torch.testing.assert_close(torch.compile(found, backend="eager")(IMAGES, LABELS)[0], expected)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        together = nn.parallel.DistributedDataParallel(found)
        loss, _ = together(IMAGES, LABELS)
        loss.backward()
        assert torch.equal(loss, expected)
        assert all(p.grad is not None for p in found.trainable_parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_methods_lists_every_recipe():
    found = {info.name: info for info in kdbench.methods()}
    assert sorted(found) == sorted(p.stem for p in (ROOT / "conf" / "method").glob("*.yaml"))
    assert found["crd"].kind == "contrastive"
    assert all(info.paper and info.kind for info in found.values())
    assert kdbench.losses.cross_entropy(torch.zeros(1, 2), torch.tensor([0])).shape == (1,)


def test_importing_it_brings_no_framework():
    code = (
        "import sys, kdbench\n"
        "print('torch' in sys.modules)\n"
        "kdbench.Distiller, kdbench.losses, kdbench.methods()\n"
        f"print(sorted(set({HEAVY}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n[]\n", done.stderr
