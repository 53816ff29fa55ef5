"""A student in a form that other programs take, loaded again and compared; prints a JSON line last.

python -m kdbench.export RUN format=onnx out=DIR
"""

import json
import re
import sys

from kdbench.config import hydra_cli
from kdbench.config.run_config import check_export
from kdbench.records.settings import ExportSettings
from kdbench.system.escapes import for_terminal


def run(config: ExportSettings) -> None:
    """Export; torch is imported here, once the command has been understood: it takes seconds."""
    from kdbench.exporting.files import export

    notices, facts = export(config)
    for line in notices:
        print(for_terminal(line))
    print(json.dumps(facts, allow_nan=False))


def main() -> None:
    """`kdbench-export`; what is no KEY=VALUE and no flag is the run."""
    setting = re.compile(r"-|[+~]{0,2}[a-zA-Z_][\w./@]*=")
    sys.argv[1:] = [word if setting.match(word) else f"run={word}" for word in sys.argv[1:]]
    hydra_cli.run("export", check_export, run)


if __name__ == "__main__":
    main()
