"""What a sweep's jobs share is composed once, and each is what Hydra composes alone."""

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from kdbench.config.composing import Composer, bare

SWEEPS = [
    ["method=kd,dkd", "seed=0,1", "schedule.lr=0.1,0.2", "+method.extra=1"],
    ["teacher=resnet20", "teacher.resnet20.checkpoint=a,b", "method.temperature=2,4", "method=kd"],
    ["+experiments=quickstart", "seed=3,4", "hydra.launcher.fail_fast=true"],
    ["student=resnet8,vgg8", "dataset={name:mine},{name:yours}", "~logger"],
]


@pytest.fixture
def composed(monkeypatch) -> list[list[str]]:
    """The overrides of everything that Hydra composes."""
    calls: list[list[str]] = []
    compose = Composer.compose

    def counted(self, overrides, *given):
        calls.append(overrides)
        return compose(self, overrides, *given)

    monkeypatch.setattr(Composer, "compose", counted)
    return calls


@pytest.mark.parametrize("overrides", SWEEPS, ids=" ".join)
def test_a_job_is_what_hydra_composes_alone(overrides):
    composer = Composer("config", overrides)
    jobs = composer.jobs(composer.head())
    assert len(jobs) > 1
    for job in jobs[:: max(1, len(jobs) // 4)]:
        alone = bare(Composer("config", []).compose(job.overrides))
        assert OmegaConf.to_yaml(job.config) == OmegaConf.to_yaml(alone)


def test_values_cost_no_composition(composed):
    composer = Composer("config", ["method=kd,dkd", "seed=range(0,40)", "schedule.lr=0.1,0.2"])
    head = composer.head()
    composed.clear()
    jobs = composer.jobs(head)
    assert composed == [["method=kd"], ["method=dkd"]]
    assert len({str(job.config) for job in jobs}) == len(jobs) == 160


def test_a_job_s_values_leave_the_others_as_they_are():
    composer = Composer("config", ["seed=0,1", "+method.more=[1]"])
    first, second = composer.jobs(composer.head())
    first.config.method.more.append(2)
    assert second.config.method.more == [1]


@pytest.mark.parametrize("override", ["method.temprature=1", "+seed=1", "method={x:1,2}"])
def test_a_wrong_value_is_found_as_before(override):
    with pytest.raises(HydraException) as alone:
        Composer("config", []).compose([override])
    composer = Composer("config", ["seed=0,1"])
    head = composer.head()
    composer.overrides.append(override)
    with pytest.raises(type(alone.value)) as shared:
        composer.jobs(head)
    assert str(shared.value) == str(alone.value)
