"""torchdistill's KD step, in an environment of its own, driven by the benchmark a turn at a time.

The environment is .venv-torchdistill (`make bench TORCHDISTILL=1` makes it). It adds torchdistill
to the very PyTorch that the benchmark runs on, so that no other version is compared. This file is
both ends: `Peer` here, `main` there. The networks, first weights, images and recipe are the plain
loop's; the loop is that of torchdistill's example of image classification.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-torchdistill" / "bin" / "python"


class Peer:
    """The other process: it takes so many steps when it is told to."""

    def __init__(self, process: subprocess.Popen[str], loss: float) -> None:
        self.process, self.loss = process, loss

    @classmethod
    def open(
        cls,
        sizes: Any,
        student: nn.Module,
        teacher: nn.Module,
        images: Tensor,
        labels: Tensor,
        folder: Path,
    ) -> tuple["Peer | None", str | None]:
        """Start it; None, and why, where that cannot be."""
        if not PYTHON.is_file():
            return None, f"{PYTHON.parents[1].name} is not there: make bench TORCHDISTILL=1"
        path = folder / "torchdistill.pt"
        facts = {"student": sizes.student, "teacher": sizes.teacher, "batch": sizes.batch}
        facts |= {"steps": sizes.steps, "threads": torch.get_num_threads()}
        weights = {"student_weights": student.state_dict(), "teacher_weights": teacher.state_dict()}
        torch.save({**facts, **weights, "images": images, "labels": labels}, path)
        command = [str(PYTHON), "-m", "benchmarks.torchdistill_step", str(path)]
        with (folder / "torchdistill.log").open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        peer = cls(process, 0.0)
        answer = peer.read()
        if "loss" not in answer:
            lines = (folder / "torchdistill.log").read_text().strip().splitlines()
            return None, f"it does not run: {lines[-1] if lines else answer}"
        peer.loss = answer["loss"]
        return peer, None

    def read(self) -> dict[str, Any]:
        """The next answer; empty where the process has ended."""
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        return json.loads(text) if text else {}

    def steps(self, count: int) -> None:
        """So many updates.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        if not self.read():
            raise RuntimeError("torchdistill's process has ended")

    def __del__(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()


class Logits(nn.Module):
    """A network of the zoo that returns logits alone."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, K]."""
        return self.body(images).logits


def configuration(batch: int) -> dict[str, Any]:
    """torchdistill's own configuration of the plain loop's recipe."""
    from benchmarks import plain_loop
    from benchmarks.common import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY

    ends = {"module_path": ".", "module_io": "output"}
    kd: dict[str, Any] = {
        f"{who}_{key}": value for who in ("student", "teacher") for key, value in ends.items()
    }
    kd |= {"temperature": plain_loop.TEMPERATURE, "alpha": plain_loop.CE_WEIGHT}
    term = {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}
    recipe = {"lr": LEARNING_RATE, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": torch.utils.data.RandomSampler},
            "kwargs": {"batch_size": batch, "num_workers": plain_loop.WORKERS},
        },
        "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"requires_grad": True, "forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": recipe},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": term}}},
    }


def main() -> None:
    """Say the first loss, then take as many steps as each line of standard input says."""
    from torchdistill.core.distillation import get_distillation_box

    from benchmarks import common
    from benchmarks.plain_loop import PictureSet

    given = torch.load(sys.argv[1], weights_only=True)
    torch.set_num_threads(given["threads"])
    data = common.dataset(given["batch"] * given["steps"])
    networks = {}
    for who in ("student", "teacher"):
        body = common.network(given[who], data)
        body.load_state_dict(given[f"{who}_weights"])
        networks[who] = Logits(body).to(common.DEVICE)
    networks["teacher"].eval()  # as torchdistill's example leaves it, having scored it
    box = get_distillation_box(
        networks["teacher"],
        networks["student"],
        {"train": PictureSet(data.train)},
        configuration(given["batch"]),
        common.DEVICE,
        None,
        False,
        1,
    )
    box.pre_epoch_process(epoch=0)
    batches = common.endless(lambda: iter(box.train_data_loader))

    def step(images: Tensor, labels: Tensor, supplement: dict[str, Any]) -> float:
        images, labels = images.to(common.DEVICE), labels.to(common.DEVICE)
        loss = box.forward_process(images, labels, supplement)
        box.post_forward_process(loss=loss)
        return loss.item()

    print(json.dumps({"loss": step(given["images"], given["labels"], {})}), flush=True)
    for text in sys.stdin:
        for _ in range(int(text)):
            step(*next(batches))
        print(json.dumps({"steps": int(text)}), flush=True)


if __name__ == "__main__":
    main()
