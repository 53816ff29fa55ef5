"""What a recipe around another one must keep: parameters, numbers, and the cost of a step."""

import pytest
import torch
from torch import nn

import kdbench.methods.dynamickd
import kdbench.methods.entropy_weight
from kdbench.methods.base import Method, Wrapper
from kdbench.methods.ctkd import CTKD
from kdbench.methods.dot import DOT
from kdbench.methods.dynamickd import DynamicKD
from kdbench.methods.entropy_weight import EntropyWeight, entropy_weight
from kdbench.methods.kd import KD
from kdbench.methods.logit_scale import optimal_scale
from kdbench.methods.logit_standardization import LogitStandardization
from kdbench.types import Batch, Output

GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = (Output(torch.randn(4, 6, generator=GENERATOR), {}) for _ in range(2))
BATCH = Batch(torch.zeros(4), torch.arange(4), torch.arange(4), torch.tensor(2.0))


class Scaled(Wrapper):
    """A wrapper with parameters of its own."""

    def __init__(self, inner: Method) -> None:
        super().__init__(inner)
        self.own = nn.Linear(2, 2)


@pytest.mark.parametrize("inner", [KD, CTKD])
def test_the_wrapper_s_own_parameters_are_trained(inner):
    made = Scaled(Scaled(inner()))
    groups = [parameter for group in made.param_groups() for parameter in group["params"]]
    assert len(groups) == len({id(parameter) for parameter in groups})
    assert {id(parameter) for parameter in groups} == {id(p) for p in made.parameters()}
    assert Scaled(CTKD()).param_groups()[0] == CTKD().param_groups()[0] | {
        "params": Scaled(CTKD()).param_groups()[0]["params"]
    }
    assert len(DOT(KD()).param_groups()) == 0


@pytest.mark.parametrize(
    "wrap",
    [lambda m: m, DOT, EntropyWeight, LogitStandardization, lambda m: EntropyWeight(DOT(m))],
    ids=["alone", "dot", "entropy", "standardised", "twice"],
)
def test_a_step_computes_once_what_terms_and_curves_have_in_common(wrap, monkeypatch):
    counts = {"scale": 0, "weight": 0}

    def scale(*arguments):
        counts["scale"] += 1
        return optimal_scale(*arguments)

    def weight(*arguments):
        counts["weight"] += 1
        return entropy_weight(*arguments)

    monkeypatch.setattr(kdbench.methods.dynamickd, "optimal_scale", scale)
    monkeypatch.setattr(kdbench.methods.entropy_weight, "entropy_weight", weight)
    made = wrap(DynamicKD(shape="per_sample"))
    student = Output(STUDENT.logits.clone().requires_grad_(), {})
    terms, curves = made.terms_and_curves(BATCH, student, (TEACHER,))
    assert counts == {"scale": 1, "weight": int("weight" in curves)}
    apart = made(BATCH, student, (TEACHER,)), made.observe(BATCH, student, (TEACHER,))
    for together, alone in zip((terms, curves), apart, strict=True):
        assert together.keys() == alone.keys()
        assert all(torch.equal(together[name], alone[name]) for name in together)
