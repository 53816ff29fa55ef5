"""CONTRIBUTING.md keeps its word: its example is a method, without touching anything else."""

import re
import sys
from types import ModuleType

import torch
import yaml

import kdbench.methods
from conftest import ROOT
from kdbench.build import make
from kdbench.schema import check_node
from kdbench.types import Batch, Output


def test_the_example_is_a_method(monkeypatch):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (config,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    module = ModuleType("kdbench.methods.logit_l2")
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(kdbench.methods, "logit_l2", module, raising=False)
    method = make(check_node("method", yaml.safe_load(config)))
    batch = Batch(torch.empty(0), torch.tensor([0]), torch.arange(1), torch.tensor(1.0))
    student, teacher = Output(torch.tensor([[1.0, 3.0]]), {}), Output(torch.zeros(1, 2), {})
    terms = method(batch, student, (teacher,))
    assert terms["l2"].tolist() == [5.0]
    assert terms["ce"].shape == (1,)
