"""Score a checkpoint on a data set's test images; the last line printed is JSON.

python -m kdbench.evaluate student=resnet32 checkpoint=FILE dataset=cifar100 dataset.root=DIR
"""

import json

from kdbench.config import hydra_cli
from kdbench.config.run_config import check_evaluate
from kdbench.records.settings import EvaluateSettings
from kdbench.system.escapes import for_terminal


def run(config: EvaluateSettings) -> None:
    """Score; torch, slow to import, is imported once the command has been understood."""
    from kdbench.tasks.scoring import score_checkpoint

    notices, scores = score_checkpoint(config)
    for line in notices:
        print(for_terminal(line))
    print(json.dumps(scores, allow_nan=False))


def main() -> None:
    """`kdbench-evaluate`."""
    hydra_cli.run("evaluate", check_evaluate, run)


if __name__ == "__main__":
    main()
