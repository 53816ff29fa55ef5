"""`make bench`: kdbench against the plain loop, side by side in one run.

    python -m benchmarks.run [--quick] [--torchdistill] [--tiny]

Lines for people first; the last line is one JSON object. Every figure is a ratio within a round of
alternating turns, with the quartiles over the rounds.
"""

import argparse
import json
import os
import time
from datetime import UTC, datetime
from typing import Any

import torch

from benchmarks import gpu, methods, pipeline, steps
from benchmarks.common import DEVICE, FULL, QUICK, TINY, Sizes
from kdbench.records.record import code_version
from kdbench.system.hardware import hardware, versions

TARGETS = {  # name -> limit, and whether it is a floor
    "input_pipeline_ratio": (5.0, True),
    "cohort8_cost_per_method": (0.45, False),
    "table_run_cost": (0.45, False),
}


def load() -> list[float]:
    """The machine's load averages: other work makes the spread wider."""
    return [round(value, 2) for value in os.getloadavg()]


def measure(sizes: Sizes, with_torchdistill: bool) -> dict[str, Any]:
    """Every part, and the headline of each."""
    started, load_before = time.monotonic(), load()
    machine = hardware(DEVICE)
    print(f"{machine.get('gpu', machine['cpu'])}, {machine['cores']} cores, load {load_before}")
    inputs = pipeline.measure(sizes)
    stepped = steps.measure(sizes, with_torchdistill)
    ratios = stepped["ratios"]
    each = methods.measure(sizes.methods)["methods"] if sizes.methods else None
    on_gpu = gpu.measure(sizes, each)
    return {
        "input_pipeline_ratio": inputs["ratio"]["median"],
        "cohort8_cost_per_method": ratios["cohort8"]["median"],
        "table_run_cost": ratios["lone_table"]["median"],
        "live_run_cost": ratios["lone_live"]["median"],
        "torchdistill_cost": (stepped["torchdistill"] or {}).get("median"),
        "gpu": on_gpu,
        "input_pipeline": inputs,
        "steps": stepped,
        "methods": each,
        "sizes": vars(sizes),
        "hardware": machine,
        "versions": versions(),
        "commit": code_version(),
        "load": {"before": load_before, "after": load()},
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under four minutes on two CPU cores")
    parser.add_argument("--tiny", action="store_true", help="small networks, to try this out")
    parser.add_argument("--torchdistill", action="store_true", help="measure torchdistill's step")
    chosen = parser.parse_args()
    sizes = TINY if chosen.tiny else QUICK if chosen.quick else FULL
    found = measure(sizes, chosen.torchdistill)
    print(f"targets, after {found['seconds']:.0f} s, load {found['load']['after']}")
    for name, (limit, floor) in TARGETS.items():
        reached = found[name] >= limit if floor else found[name] <= limit
        sign, word = (">=" if floor else "<="), ("reached" if reached else "not reached")
        print(f"  {name:<26} {found[name]:7.3f}   {sign} {limit}: {word}")
    print(json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    main()
