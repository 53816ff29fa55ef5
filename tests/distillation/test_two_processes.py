"""Two processes of torch's DistributedDataParallel train one student by a `Distiller`."""

import subprocess
import sys

import pytest

RANK = """
import hashlib, sys
import torch
from torch import nn
import kdbench
from kdbench.networks.resnet import resnet8, resnet14

method, rank, meeting = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
torch.manual_seed(0)
images, labels, index = torch.randn(16, 3, 32, 32), torch.arange(16) % 4, torch.arange(16)
given = resnet8(4), resnet14(4)
distiller = kdbench.Distiller(method, *given, example=images[:2], train_labels=labels)
together = nn.parallel.DistributedDataParallel(distiller)
optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=0.01)
mine = slice(8 * rank, 8 * rank + 8)
for epoch in (1, 2):
    optimizer.zero_grad()
    loss, _ = together(images[mine], labels[mine], index=index[mine], epoch=epoch)
    loss.backward()
    optimizer.step()
weights = torch.cat([p.detach().flatten() for p in distiller.trainable_parameters()])
print(loss.item(), hashlib.sha256(weights.numpy().tobytes()).hexdigest())
torch.distributed.destroy_process_group()
"""


@pytest.mark.long
@pytest.mark.parametrize("method", ["crd", "kd", "reviewkd"])
def test_two_processes_keep_one_student(tmp_path, method):
    command = [sys.executable, "-c", RANK, method]
    meeting = f"file://{tmp_path}/meeting"
    ranks = [
        subprocess.Popen([*command, str(rank), meeting], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=300)[0].split() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    (first_loss, first), (second_loss, second) = said
    assert first == second
    assert first_loss != second_loss, "each saw images of its own"
