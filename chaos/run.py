"""`make chaos`: kill -9 at random moments, start again, and compare with what was never killed.

    python -m chaos.run [--count 200] [--seed 0] [--methods kd,crd] [--faults clock,records]
        [--page docs/reliability.md]

Then the faults that are no kills. Goes on where it was stopped, as long as the code is the same.
Exit code 1: something ended otherwise.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import torch

from chaos.arena import Fault
from chaos.faults import FAULTS, fault
from chaos.ground import Ground
from chaos.report import kills, report, write_page
from chaos.sweeps import sweep
from chaos.trials import ENOUGH, Trial, trial
from kdbench.assembly.build import build_method
from kdbench.assembly.method_pages import recipes
from kdbench.config.conf_files import conf_dir
from kdbench.config.hydra_cli import compose_group
from kdbench.methods.base import Method
from kdbench.schema.check import check_node

SWEEPS = 5  # one trial in so many is a sweep


def code_hash() -> str:
    """8 hex digits over the package, its configuration and this program."""
    digest = hashlib.sha256()
    here = Path(__file__).resolve().parent
    for folder, pattern in ((here.parent / "src", "*.py"), (conf_dir(), "*.yaml"), (here, "*.py")):
        for path in sorted(folder.rglob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def method_of(name: str) -> Method:
    """The method of `conf/method/<name>.yaml`."""
    return build_method(check_node("method", compose_group("method", name)), 0)


def try_kills(ground: Ground, count: int) -> list[Trial]:
    """Trials until so many processes were killed."""
    trials = ground.kept(Trial)
    while kills(trials) < count:
        number, most = len(trials), min(ENOUGH, count - kills(trials))
        one = (sweep if number % SWEEPS == 1 else trial)(ground, number, most)
        ground.keep(one)
        trials.append(one)
        outcome = "; ".join(one.differences) or "same bits"
        print(f"{kills(trials)}/{count} {one.kind} {', '.join(one.methods)}: {outcome}", flush=True)
    return trials


def try_faults(ground: Ground, names: list[str]) -> list[Fault]:
    """Each fault that was not tried before."""
    faults = ground.kept(Fault)
    for name in names[len(faults) :]:
        one = fault(ground, name)
        ground.keep(one)
        faults.append(one)
        print(f"{one.name}: {'; '.join(one.wrong) or one.skipped or one.outcome}", flush=True)
    return faults


def main() -> None:
    """Kill until the count is reached, then try the other faults."""
    parser = argparse.ArgumentParser(description="kill -9 at random moments, resume, compare")
    parser.add_argument("--count", type=int, default=200, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", default="", help="kill runs of these only, with commas")
    parser.add_argument("--faults", help="these only, with commas (default: all)")
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--page", type=Path, help="where the results are written")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = given.methods.split(",") if given.methods else list(recipes())
    ground = Ground(
        given.folder.resolve() / f"{code_hash()}-s{given.seed}",
        given.seed,
        {name: method_of(name) for name in recipes()},
        names,
    )
    trials = try_kills(ground, given.count)
    chosen = list(FAULTS) if given.faults is None else given.faults.split(",")
    faults = try_faults(ground, [name for name in chosen if name])
    text = report(trials, faults, given.seed)
    print(text)
    if given.page is not None:
        write_page(given.page, "chaos", text)
    if any(one.differences for one in trials) or any(one.wrong for one in faults):
        sys.exit(1)


if __name__ == "__main__":
    main()
