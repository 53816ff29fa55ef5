"""`make chaos`: kill -9 at random moments, start again, and compare with what was never killed.

    python -m chaos.run [--count 200] [--seed 0] [--methods kd,crd] [--page docs/reliability.md]

Goes on where it was stopped, as long as the code is the same. Exit code 1: a run ended otherwise.
"""

import argparse
import hashlib
import sys
from collections import Counter
from pathlib import Path

import torch

from chaos.trials import ENOUGH, Ground, Trial
from kdbench.build import build_method
from kdbench.catalogue import recipes
from kdbench.cli import compose_group
from kdbench.config import conf_dir
from kdbench.methods.base import Method
from kdbench.schema import check_node

BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"


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


def kills(trials: list[Trial]) -> int:
    """How many processes were killed."""
    return sum(len(trial.kills) for trial in trials)


def report(trials: list[Trial], seed: int) -> str:
    """The results in Markdown."""
    methods = sorted({name for trial in trials for name in trial.methods})
    cohorts = sum(len(trial.methods) > 1 for trial in trials)
    bad = [trial for trial in trials if trial.differences]
    counts = Counter(kill for trial in trials for kill in trial.kills)
    lines = [
        f"`make chaos COUNT={kills(trials)} SEED={seed}`, torch {torch.__version__}, one thread: "
        f"{kills(trials)} kills in {len(trials)} trials ({cohorts} of them cohorts) of "
        f"{len(methods)} methods; **{len(trials) - len(bad)} of {len(trials)} ended with the bits "
        "of the undisturbed run**.",
        "",
        "| killed | times |",
        "|---|---|",
        *(f"| {name} | {counts[name]} |" for name in sorted(counts)),
        "",
        f"Methods: {', '.join(methods)}.",
    ]
    lines += [f"\n- trial {trial.number}: {'; '.join(trial.differences)}" for trial in bad]
    return "\n".join(lines)


def write_page(path: Path, text: str) -> None:
    """Put the results between the page's two marks."""
    before, _, rest = path.read_text().partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


def main() -> None:
    """Kill until the count is reached."""
    parser = argparse.ArgumentParser(description="kill -9 at random moments, resume, compare")
    parser.add_argument("--count", type=int, default=200, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", default="", help="of these only, with commas")
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--page", type=Path, help="where the results are written")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = given.methods.split(",") if given.methods else list(recipes())
    methods = {name: method_of(name) for name in names}
    ground = Ground(given.folder.resolve() / f"{code_hash()}-s{given.seed}", given.seed, methods)
    trials = ground.trials()
    while kills(trials) < given.count:
        trial = ground.trial(len(trials), min(ENOUGH, given.count - kills(trials)))
        trials.append(trial)
        outcome = "; ".join(trial.differences) or "same bits"
        print(f"{kills(trials)}/{given.count} {', '.join(trial.methods)}: {outcome}", flush=True)
    text = report(trials, given.seed)
    print(text)
    if given.page is not None:
        write_page(given.page, text)
    if any(trial.differences for trial in trials):
        sys.exit(1)


if __name__ == "__main__":
    main()
