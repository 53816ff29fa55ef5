"""Where a step's time goes: the costliest operators of the plain loop's step and of kdbench's.

python -m benchmarks.profiles
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import common, steps
from benchmarks.common import DEVICE, QUICK, TINY

SHOWN = ("plain", "lone_live", "lone_table", "cohort8")
ROWS = 12


def table(call: Callable[[], object]) -> list[tuple[str, float, int]]:
    """Name, ms in the operator itself and number of calls, the costliest first."""
    activities = [ProfilerActivity.CPU]
    if DEVICE.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        call()
        common.synchronise()
    rows = []
    for event in profiler.key_averages():
        own = event.self_cpu_time_total
        if DEVICE.type == "cuda":
            own = event.self_device_time_total
        rows.append((event.key, own / 1000, event.count))
    return sorted(rows, key=lambda row: -row[1])


def main() -> None:
    """Print a table in Markdown for each contestant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small networks, to try this out")
    sizes = TINY if parser.parse_args().tiny else QUICK
    with tempfile.TemporaryDirectory() as folder:
        calls, _, _ = steps.set_up(sizes, Path(folder), with_torchdistill=False)
        print(f"{DEVICE.type}, {torch.get_num_threads()} threads, batch {sizes.batch}, one step")
        for name in SHOWN:
            calls[name]()
            rows = table(calls[name])
            total = sum(own for _, own, _ in rows)
            print(f"\n{name}: {total:.0f} ms in {sum(count for *_, count in rows)} operators\n")
            print("| operator | ms | share | calls |\n|---|---|---|---|")
            for operator, own, count in rows[:ROWS]:
                print(f"| `{operator}` | {own:.1f} | {100 * own / total:.0f}% | {count} |")


if __name__ == "__main__":
    main()
