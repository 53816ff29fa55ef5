"""Tables from records, and from nothing else.

python -m kdbench.table runs/quickstart
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.record import Record, find_records, without_later

HEADER = (
    "| dataset | teacher | student | method | top-1 last epoch | n | best on test | minutes |",
    "|---|---|---|---|---|---|---|---|",
)


def table(records: Sequence[Record]) -> str:
    """A Markdown table, one row a cell: mean and sample standard deviation over its seeds.

    Raises:
        KdbenchError: a cell holds runs of different settings.
    """
    cells: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record["status"] == "done":
            cells[record["cell"]].append(record)
    return "\n".join([*HEADER, *(row(cell, cells[cell]) for cell in sorted(cells))])


def row(cell: str, records: Sequence[Record]) -> str:
    """One cell's row.

    Raises:
        KdbenchError: its runs have different settings.
    """
    if len({record["hash"] for record in records}) > 1:
        configs = [without_later(record["config"]) for record in records]
        keys = ", ".join(differing_keys(configs)) or "data or teacher"
        raise KdbenchError(f"{cell} mixes runs of different settings ({keys}): remove one kind")
    config = records[0]["config"]
    # A run's share of the time that it spent beside others.
    shares = [record["seconds"] / (1 + record.get("companions", 0)) for record in records]
    minutes = statistics.mean(shares) / 60
    fields = [
        records[0]["data"]["name"],
        "+".join(teacher["name"] for teacher in records[0]["teachers"]) or "none",
        config["student"]["name"],
        config["method"]["name"],
        spread([record["top1_last"] for record in records]),
        str(len(records)),
        spread([record["top1_best_on_test"] for record in records]),
        f"{minutes:.1f}",
    ]
    return f"| {' | '.join(fields)} |"


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation; the mean alone where there is one value."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def differing_keys(configs: Sequence[object], path: str = "") -> list[str]:
    """Dotted names of the settings in which configurations differ, apart from the seed."""
    if all(isinstance(config, dict) for config in configs):
        keys = sorted({key for config in configs for key in config})  # type: ignore[attr-defined]
        return [
            name
            for key in keys
            if path or key not in ("seed", "runtime")
            for name in differing_keys(
                [config.get(key) for config in configs],  # type: ignore[attr-defined]
                f"{path}.{key}" if path else key,
            )
        ]
    return [] if all(config == configs[0] for config in configs) else [path]


def main() -> None:
    """`kdbench-table`."""
    parser = argparse.ArgumentParser(prog="kdbench-table", description=__doc__.split("\n")[0])
    parser.add_argument(
        "paths", nargs="*", type=Path, default=[Path("runs")], help="folders of runs or of records"
    )
    try:
        print(table(find_records(parser.parse_args().paths)))
    except KdbenchError as error:
        print(f"kdbench: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
