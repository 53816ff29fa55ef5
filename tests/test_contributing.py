"""CONTRIBUTING.md keeps its word: its example is a method, without touching anything else."""

import re
import sys
from types import ModuleType

import torch
import yaml

import kdbench.methods
from kdbench.assembly.make import make
from kdbench.schema.check import check_node
from kdbench.types import Batch, Output
from support.commands import ROOT
from support.method_headers import check_header


def test_the_example_is_a_method(monkeypatch):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (config,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    module = ModuleType("kdbench.methods.logit_cosine")
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(kdbench.methods, "logit_cosine", module, raising=False)
    check_header(config)
    method = make(check_node("method", yaml.safe_load(config)))
    batch = Batch(torch.empty(0), torch.tensor([0, 1]), torch.arange(2), torch.tensor(1.0))
    student = Output(torch.tensor([[1.0, 0.0], [2.0, 2.0]]), {})
    teacher = Output(torch.tensor([[0.0, 3.0], [1.0, 1.0]]), {})
    terms = method(batch, student, (teacher,))
    torch.testing.assert_close(terms["cosine"], torch.tensor([1.0, 0.0]))
    assert terms["ce"].shape == (2,)
