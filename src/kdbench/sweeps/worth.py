"""The order of worth: which runs of a sweep turn the next hour into verdicts."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from kdbench.ledger.cells import BASELINES
from kdbench.records.settings import TrainSettings
from kdbench.training.jobs import Job

Place = tuple[int, int, int, int]  # pair, stage, seed, method; each from 0


class Worth:
    """The places of a sweep's runs in the order of worth.

    Pair by pair come the first seed of the headline methods, the further seeds of CE and KD, since
    every gain is measured against them, the further seeds of the headline methods in turn, and at
    last the other methods. Pairs, methods and seeds keep the order in which the sweep names them.

    Args:
        configs: all runs of the sweep, also those that are done.
        headline: the number of methods, the first that the sweep names, that are the headline;
            None: all.
    """

    def __init__(self, configs: Iterable[TrainSettings], headline: int | None) -> None:
        self.headline = headline
        self.pairs: dict[tuple[str, ...], int] = {}
        self.methods: dict[str, int] = {}
        self.seeds: dict[int, int] = {}
        for config in configs:
            alone, taught = _student(config), _pair(config)
            number = self.pairs.setdefault(taught, len(self.pairs))
            self.pairs.setdefault(alone, number)  # a method without a teacher is in the first
            self.methods.setdefault(config.method.name, len(self.methods))
            self.seeds.setdefault(config.seed, len(self.seeds))

    def place(self, config: TrainSettings) -> Place:
        """Return the place of one of the runs; a smaller one comes first."""
        name = config.method.name
        pair, method = self.pairs[_pair(config)], self.methods[name]
        seed = self.seeds[config.seed]
        if self.headline is not None and method >= self.headline and name not in BASELINES:
            stage = 3
        elif seed == 0:
            stage = 0
        else:
            stage = 1 if name in BASELINES else 2
        return pair, stage, seed, method

    def stages(self, jobs: Iterable[Job]) -> list[list[Job]]:
        """Return the jobs in the order of worth; what trains side by side is within a stage."""
        ordered = sorted(jobs, key=lambda job: self.place(job.config))
        found = groupby(ordered, key=lambda job: self.place(job.config)[:2])
        return [list(stage) for _, stage in found]


def as_given(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return the jobs in the order of the sweep, as one stage."""
    return [list(jobs)]


def _student(config: TrainSettings) -> tuple[str, ...]:
    return config.dataset.name, config.student.name


def _pair(config: TrainSettings) -> tuple[str, ...]:
    return *_student(config), *config.teacher
