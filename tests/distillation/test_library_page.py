"""docs/library.md works as it stands, with the libraries that it names, and distillation pays.

The student's labels are wrong for 60% of the images, the teacher has seen the right ones: what the
student gains is what it learns from the teacher.
"""

import re

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import kdbench
from kdbench.networks.resnet import resnet8, resnet14
from support.commands import ROOT

PAGE = (ROOT / "docs" / "library.md").read_text()
SNIPPETS = dict(re.findall(r"^## ([^\n]+)\n.*?^```python\n(.*?)^```$", PAGE, re.DOTALL | re.M))
EPOCHS, BATCH, GAIN = 4, 50, 5.0  # percent points above a student without a teacher


class Digits:
    """Digits of 16 x 16 pixels: 800 to train on, with few right labels, and 797 to score."""

    def __init__(self) -> None:
        images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
        images = F.interpolate((images.float() / 8 - 1).view(-1, 1, 8, 8), 16)
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(labels), generator=generator)
        images, labels = images.expand(-1, 3, -1, -1)[order].contiguous(), labels[order]
        self.images, self.right, self.test = (
            images[:800],
            labels[:800],
            (images[800:], labels[800:]),
        )
        wrong = torch.rand(800, generator=generator) < 0.6
        random = torch.randint(0, 10, (800,), generator=generator)
        self.labels = torch.where(wrong, random, self.right)
        torch.manual_seed(0)
        self.teacher = resnet14(num_classes=10)
        train(self.teacher, self.images, self.right)
        self.alone = self.score(train(fresh(), self.images, self.labels))

    @torch.no_grad()
    def score(self, network: torch.nn.Module) -> float:
        images, labels = self.test
        logits = network.eval()(images)
        logits = logits if isinstance(logits, torch.Tensor) else logits.logits
        return 100 * (logits.argmax(1) == labels).double().mean().item()


def fresh():
    torch.manual_seed(1)
    return resnet8(num_classes=10)


def train(network, images, labels):
    """Plain training on labels, as the page's snippets but without a teacher."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(BATCH):
            logits = network(images[rows])
            logits = logits if isinstance(logits, torch.Tensor) else logits.logits
            F.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return network


@pytest.fixture(scope="module")
def digits() -> Digits:
    torch.set_num_threads(1)
    return Digits()


def names(digits: Digits, **more) -> dict:
    """What the page takes for granted."""
    index = torch.arange(len(digits.labels))
    data = TensorDataset(index, digits.images, digits.labels)
    torch.manual_seed(0)
    loader = DataLoader(data, BATCH, shuffle=True)
    common = {"torch": torch, "kdbench": kdbench, "epochs": EPOCHS, "images": digits.images[:2]}
    return {**common, "student": fresh(), "teacher": digits.teacher, "loader": loader, **more}


def run(section: str, given: dict) -> dict:
    exec(compile(SNIPPETS[section], f"docs/library.md: {section}", "exec"), given)
    return given


def test_the_page_has_a_snippet_for_each_loop():
    assert list(SNIPPETS) == ["PyTorch", "Lightning", "Hugging Face's Trainer", "timm's train.py"]


@pytest.mark.slow
def test_plain_pytorch(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("PyTorch", names(digits))
    saved = fresh()
    saved.load_state_dict(torch.load("student.pth", weights_only=True))
    assert digits.score(saved) > digits.alone + GAIN


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Lightning, about workers and devices
def test_lightning(digits, tmp_path):
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    settings = {"accelerator": "cpu", "default_root_dir": tmp_path, **dict.fromkeys(quiet, False)}
    found = run("Lightning", names(digits, trainer_settings=settings))
    assert digits.score(found["module"].distiller.student) > digits.alone + GAIN
    assert found["trainer"].global_step == EPOCHS * 16


class Rows(Dataset):
    """What Hugging Face's Trainer reads."""

    def __init__(self, digits: Digits) -> None:
        self.digits = digits

    def __len__(self) -> int:
        return len(self.digits.labels)

    def __getitem__(self, row: int) -> dict:
        return {"pixel_values": self.digits.images[row], "labels": self.digits.labels[row]}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers, about what will change
def test_hugging_face(digits, tmp_path, monkeypatch):
    from transformers import ResNetConfig, ResNetForImageClassification

    monkeypatch.chdir(tmp_path)
    small = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "num_labels": 10}

    def network():
        torch.manual_seed(1)
        shape = {"layer_type": "basic", "downsample_in_first_stage": False}
        return ResNetForImageClassification(ResNetConfig(**small, **shape))

    alone = digits.score(train(network(), digits.images, digits.labels))
    arguments = {
        "output_dir": "run",
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    given = names(digits, student=network(), dataset=Rows(digits), training_arguments=arguments)
    run("Hugging Face's Trainer", given)
    saved = ResNetForImageClassification.from_pretrained("student")
    assert digits.score(saved) > alone + GAIN


@pytest.mark.slow
def test_timm(digits):
    pytest.importorskip("timm.task", reason="timm has tasks from 1.0.23 on")
    import timm.optim

    given = names(digits, timm=__import__("timm"))
    assert timm.optim
    pairs = [(images, labels) for _, images, labels in given["loader"]]
    found = run("timm's train.py", given | {"batches": pairs * EPOCHS})
    student = found["task"].get_eval_model()
    assert digits.score(student) > digits.alone + GAIN
