"""`make chaos`: kill -9 at random moments, start again, and compare with what was never killed.

    python -m chaos.run [--count 200] [--seed 0] [--kinds fused] [--methods kd,crd]
        [--faults clock,records] [--page docs/reliability.md]

Then, unless kinds are chosen, the faults that are no kills. Goes on where it was stopped, as long
as the code is the same. Exit code 1: something ended otherwise.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from chaos import slurm_cluster
from chaos.agents import agents
from chaos.arena import Fault
from chaos.faults import FAULTS, fault
from chaos.fused import fused
from chaos.ground import Ground
from chaos.report import kills, report
from chaos.slurm import slurm
from chaos.sweeps import sweep
from chaos.trials import ENOUGH, Trial, trial
from kdbench.assembly.build import build_method
from kdbench.assembly.method_pages import recipes
from kdbench.config.conf_files import conf_dir
from kdbench.config.hydra_cli import compose_group
from kdbench.methods.base import Method
from kdbench.schema.check import check_node
from kdbench.training.fused import has_plain_step

KINDS = {"runs": trial, "sweeps": sweep, "fused": fused, "slurm": slurm, "agents": agents}
OFTEN = ("runs", "sweeps", "runs", "runs")  # before each of the others; runs are cohorts too
ROUND = (*OFTEN, "fused", *OFTEN, "slurm", *OFTEN, "agents")  # again and again


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


def try_kills(ground: Ground, count: int, kinds: Sequence[str]) -> list[Trial]:
    """Trials of these kinds in turn until so many processes were killed."""
    trials = ground.kept(Trial)
    turns = [kind for kind in ROUND if kind in kinds]
    while turns and kills(trials) < count:
        number, most = len(trials), min(ENOUGH, count - kills(trials))
        one = KINDS[turns[number % len(turns)]](ground, number, most)
        ground.keep(one)
        trials.append(one)
        outcome = "; ".join(one.differences) or "as undisturbed"
        print(f"{kills(trials)}/{count} {one.kind} {', '.join(one.methods)}: {outcome}", flush=True)
    return trials


def left_out(ground: Ground, kinds: Sequence[str]) -> dict[str, str]:
    """The kinds that cannot be tried here, with the reason."""
    found = {}
    why = slurm_cluster.missing()
    if why is None and find_spec("submitit") is None:
        why = "no submitit: pip install 'kdbench[slurm]'"
    if "slurm" in kinds and why is not None:
        found["slurm"] = why
    if "fused" in kinds and sum(map(has_plain_step, map(method_of, ground.chosen))) < 2:
        found["fused"] = "fewer than two of the methods can train as one network"
    return found


def try_faults(ground: Ground, names: list[str]) -> list[Fault]:
    """Each fault that was not tried before."""
    faults = ground.kept(Fault)
    for name in names[len(faults) :]:
        one = fault(ground, name)
        ground.keep(one)
        faults.append(one)
        print(f"{one.name}: {'; '.join(one.wrong) or one.skipped or one.outcome}", flush=True)
    return faults


def write_page(path: Path, mark: str, text: str) -> None:
    """Put results between a page's two marks of that name."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    before, _, rest = path.read_text().partition(begin)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def main() -> None:
    """Kill until the count is reached, then try the other faults."""
    parser = argparse.ArgumentParser(description="kill -9 at random moments, resume, compare")
    parser.add_argument("--count", type=int, default=200, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", help=f"these only, with commas, of {', '.join(KINDS)}")
    parser.add_argument("--methods", default="", help="kill runs of these only, with commas")
    parser.add_argument("--faults", help="these only, with commas (default: all)")
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--page", type=Path, help="where the results are written")
    given = parser.parse_args()
    kinds = given.kinds.split(",") if given.kinds else []
    if not set(kinds) <= set(KINDS):
        parser.error(f"--kinds must be of {', '.join(KINDS)}")
    torch.set_num_threads(1)
    names = given.methods.split(",") if given.methods else list(recipes())
    ground = Ground(
        given.folder.resolve() / "-".join([code_hash(), f"s{given.seed}", *kinds]),
        given.seed,
        {name: method_of(name) for name in recipes()},
        names,
    )
    skipped = left_out(ground, kinds or list(KINDS))
    trials = try_kills(ground, given.count, [k for k in kinds or KINDS if k not in skipped])
    chosen = list(FAULTS) if given.faults is None and not kinds else (given.faults or "").split(",")
    faults = try_faults(ground, [name for name in chosen if name])
    command = f"make chaos COUNT={kills(trials)} SEED={given.seed}"
    command += f" KINDS={given.kinds}" if kinds else ""
    for mark, text in report(trials, faults, command, skipped).items():
        print(text)
        if given.page is not None:
            write_page(given.page, mark, text)
    if any(one.differences for one in trials) or any(one.wrong for one in faults):
        sys.exit(1)


if __name__ == "__main__":
    main()
