import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import dkd_losses, kd_loss
from kdbench.methods.at import AT
from kdbench.methods.dkd import DKD
from kdbench.methods.kd import KD
from kdbench.methods.sdd import SDD
from kdbench.methods.srd import SRD
from kdbench.networks.heads import class_maps
from kdbench.types import Affine, Batch, NetworkProbe, Output, Probe

COUNT, WIDTH, CLASSES = 8, 6, 5
LABELS = torch.arange(COUNT) % CLASSES


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CLASSIFIERS = [Affine(drawn(CLASSES, WIDTH, seed=s), drawn(CLASSES, seed=s + 2)) for s in (0, 1)]


def outputs(student_side: int = 4, teacher_side: int = 8) -> list[Output]:
    """A student's and a teacher's, with the student's tap of class maps."""
    made = []
    for (weight, bias), side in zip(CLASSIFIERS, (student_side, teacher_side), strict=True):
        feature = drawn(COUNT, WIDTH, side, side, seed=side)
        maps = class_maps(feature, weight, bias)
        made.append(Output(maps.mean(dim=(2, 3)), {"map": feature, "class_map": maps}))
    return made


def terms(method: SDD, student: Output, teacher: Output, epoch: float = 99.0) -> dict:
    probes = [
        NetworkProbe({"map": output.taps["map"].shape[1:]}, classifier)
        for output, classifier in zip((student, teacher), CLASSIFIERS, strict=True)
    ]
    method.setup(Probe(probes[0], (probes[1],), CLASSES, LABELS))
    batch = Batch(torch.empty(0), LABELS, torch.arange(COUNT), torch.tensor(epoch))
    return method(batch, student, (teacher,))


def cells(feature: torch.Tensor, classifier: Affine) -> list[torch.Tensor]:
    """Of one image [D, S, S], the logits of the whole and of its four quarters."""
    half = feature.shape[1] // 2
    rows = (slice(0, half), slice(half, None))
    parts = [feature, *(feature[:, r, c] for r in rows for c in rows)]
    return [classifier.weight @ part.mean(dim=(1, 2)) + classifier.bias for part in parts]


@pytest.mark.parametrize("inner", ["kd", "dkd"])
def test_follows_the_formula(inner):
    student, teacher = outputs()
    recipe = KD() if inner == "kd" else DKD(nckd_weight=2.0)
    found = terms(SDD(recipe, (1, 2), complementary_weight=3.0), student, teacher)
    seen = set()
    for b, label in enumerate(LABELS):
        pairs = [
            cells(o.taps["map"][b], c) for o, c in zip((student, teacher), CLASSIFIERS, strict=True)
        ]
        right = [(cell.argmax() == label).item() for cell in pairs[1]]
        total = 0.0
        for s, t, correct in zip(*pairs, right, strict=True):
            seen.add(correct == right[0])
            weight = 1.0 if correct == right[0] else 3.0
            if inner == "kd":
                total += weight * 0.9 * kd_loss(s[None], t[None], 4.0)[0]
            else:
                target, others = dkd_losses(s[None], t[None], label[None], 4.0)
                total += weight * (target + 2.0 * others)[0]
        distilled = sum(term[b] for name, term in found.items() if name != "ce")
        torch.testing.assert_close(distilled, total / 5)
    assert seen == {True, False}, "the example has both kinds of cells"


def test_labels_see_the_image_alone():
    student, teacher = outputs()
    alone = torch.nn.functional.cross_entropy(student.logits, LABELS, reduction="none")
    torch.testing.assert_close(terms(SDD(KD(), (1, 2, 4)), student, teacher)["ce"], 0.1 * alone)


def test_one_scale_is_the_inner_recipe():
    student, teacher = outputs()
    batch = Batch(torch.empty(0), LABELS, torch.arange(COUNT), torch.tensor(1.0))
    torch.testing.assert_close(
        terms(SDD(KD(), (1,)), student, teacher)["kd"], KD()(batch, student, (teacher,))["kd"]
    )


def test_a_map_smaller_than_the_scale_repeats_its_cells():
    """MobileNetV2 ends with 2x2: its 16 cells are its 4, each four times."""
    student, teacher = outputs(student_side=2, teacher_side=2)
    two, four = (terms(SDD(KD(), scales), student, teacher)["kd"] for scales in ((1, 2), (1, 2, 4)))
    image = terms(SDD(KD(), (1,)), student, teacher)["kd"]
    torch.testing.assert_close(four * 21, image + 5 * (5 * two - image))


class Coupled(KD):
    """A distance between batches, declared as if it were of samples."""

    def forward(self, batch, student, teachers):
        return {
            name: term.mean() for name, term in super().forward(batch, student, teachers).items()
        }


def test_refuses_what_it_cannot_wrap():
    with pytest.raises(ConfigError, match=r"couples the batch in its term ce: use kd"):
        terms(SDD(Coupled(), (1, 2)), *outputs())
    with pytest.raises(ConfigError, match=r"method.scales must rise from 1"):
        SDD(KD(), (2, 4))
    with pytest.raises(ConfigError, match=r"method.inner must compare the logits"):
        terms(SDD(AT(), (1, 2)), *outputs())
    with pytest.raises(ConfigError, match=r"method.inner must compare the logits"):
        SDD(SRD(), (1, 2))
