"""A run of kdbench-train and a bare loop with `Distiller` are one training, bit for bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import kdbench
import kdbench.training.member
from kdbench.assembly.build import build_student
from kdbench.assembly.make import make
from kdbench.assembly.method_pages import recipes
from kdbench.assembly.probes import training_set
from kdbench.networks.resnet import resnet14
from kdbench.records.weights import load_weights
from kdbench.training.together import train_together
from support.runs import config

SEED, LR, DECAY = 3, 0.01, 5e-4
# Banks, draws, streams, views, students of their own, solvers, statistics, a wrapper.
QUICK = {
    *("ce", "kd", "crd", "dot", "mlkd", "dynamickd", "reviewkd", "simkd", "sdd", "semckd"),
    *("vid", "srrl", "wkd_l", "tfkd_self", "ls_kd", "cat_kd", "ctkd", "dr_kd"),
}
TEACHER_FREE = ("bce", "ce", "label_smoothing", "tfkd_reg")
RUN = [
    "dataset.num_train=40",
    "schedule.batch_size=20",
    "schedule.epochs=1",
    f"schedule.lr={LR}",
    f"schedule.weight_decay={DECAY}",
    "runtime.channels_last=false",
    "runtime.compile=off",
    "runtime.teacher=live",
    f"seed={SEED}",
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory, request):
    """The recipes of this module's tests, trained by the engine in one cohort.

    Their weights by name, the batches, the teacher and the data.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("engine"))
        (teacher,) = train_together([config(*RUN, "student=resnet14")])
        named = [
            "teacher=resnet14",
            f"teacher.resnet14.checkpoint={teacher}",
            "teacher.resnet14.allow_chance=true",
        ]
        batches: dict[int, list] = {}
        original = kdbench.training.member.train_step

        def watched(student, method, teachers, optimizer, batch, generator, losses_of):
            seen = batches.setdefault(method.views, [])
            if not any(torch.equal(batch.index, one.index) for one in seen):
                seen.append(batch)
            return original(student, method, teachers, optimizer, batch, generator, losses_of)

        patch.setattr(kdbench.training.member, "train_step", watched)
        names = [one.callspec.params["name"] for one in request.session.items if is_here(one)]
        configs = [config(*RUN, *named, f"method={name}") for name in names]
        folders = train_together(configs)
        failed = {n: f for n, f in zip(names, folders, strict=True) if not isinstance(f, Path)}
        assert not failed
        network = resnet14(num_classes=10)
        load_weights(network, teacher / "student.safetensors", "resnet14")
        data = make(configs[0].dataset, "dataset")
        found = {
            n: load_file(f / "student.safetensors") for n, f in zip(names, folders, strict=True)
        }
        yield found, batches, network, data


def is_here(item: pytest.Item) -> bool:
    return item.path == Path(__file__)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.long] * (n not in QUICK)) for n in recipes()]
)
def test_a_bare_loop_ends_with_the_weights_of_the_engine(ran, name):
    found, batches, teacher, data = ran
    torch.set_num_threads(1)
    student = build_student({"_target_": "kdbench.networks.resnet.resnet8"}, data, SEED)
    training = training_set(data)
    distiller = kdbench.Distiller(
        name,
        student,
        None if name in TEACHER_FREE else teacher,
        example=training.images(torch.arange(2)),
        train_labels=data.train.labels,
        train_images=training.images,
        seed=SEED,
    )
    optimizer = distiller.optimizer(lr=LR, momentum=0.9, weight_decay=DECAY)
    for batch in batches[distiller.method.views]:
        first, *more = batch.images if batch.images.ndim == 5 else [batch.images]
        loss, _ = distiller(first, batch.labels, index=batch.index, epoch=1, views=more or None)
        if not distiller.method.streams:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    state = distiller.student.state_dict()
    assert state.keys() == found[name].keys()
    assert [key for key, value in found[name].items() if not torch.equal(state[key], value)] == []
