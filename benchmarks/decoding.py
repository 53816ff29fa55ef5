"""CPU time of an image from a JPEG, by how many processes and threads decode at a time.

    python -m benchmarks.decoding [--images N] [--rounds N] [--cores N]

What one core decodes should not depend on how many decode beside it. Where it costs more in threads
of one process than in as many processes, the lock of the interpreter or what they share in memory
is the reason; where it costs more in both, it is the machine (turbo, memory, a second thread on a
core). As `benchmarks.streamed --enlarge`: kdbench's own reader, 500 x 375 images, crops of 224.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch

from benchmarks.streamed import BATCH, MEAN, STD, enlarged, ours
from kdbench.data.streaming.imagenet import imagenet


def decode(root: str, threads: int, batches: int, start: Barrier, told: Any) -> None:
    """In a process: one turn to warm up, then one that is timed with all others' at once."""
    torch.set_num_threads(threads)
    settings: dict[str, Any] = {"image_size": 224, "test_resize": 256, "mean": MEAN, "std": STD}
    turn = ours(imagenet(root, **settings, flip=True, val_split=0), batches)
    turn()
    start.wait()
    wall, processor = time.perf_counter(), time.process_time()
    turn()
    told.put((time.perf_counter() - wall, time.process_time() - processor))


def measure(root: str, processes: int, threads: int, images: int) -> tuple[float, float]:
    """Images a second of the clock, and milliseconds of CPU time an image."""
    context = multiprocessing.get_context("spawn")
    start, told = context.Barrier(processes), context.Queue()
    batches = max(1, images // processes // BATCH)
    given = (root, threads, batches, start, told)
    started = [context.Process(target=decode, args=given) for _ in range(processes)]
    for process in started:
        process.start()
    found = [told.get() for _ in started]
    for process in started:
        process.join()
    count = batches * BATCH * processes
    return count / max(wall for wall, _ in found), 1000 * sum(cpu for _, cpu in found) / count


def ways(cores: int) -> Sequence[tuple[int, int]]:
    """Processes and threads of each: one alone, then powers of two up to all cores, both ways."""
    counts = [2**power for power in range(1, cores.bit_length()) if 2**power <= cores]
    return [(1, 1), *((1, n) for n in counts), *((n, 1) for n in counts)]


def main() -> None:
    """Measure in alternating turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=768, help="of a turn, of all processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    root = Path(os.environ.get("KDBENCH_DATA", "data"), "imagenette-mini")
    if not root.is_dir():
        raise SystemExit(f"no {root}: set KDBENCH_DATA to a folder that holds imagenette-mini")
    times: dict[tuple[int, int], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = enlarged(root, Path(scratch, "folder"))
        for _ in range(chosen.rounds):
            for way in ways(chosen.cores):
                times.setdefault(way, []).append(measure(str(folder), *way, chosen.images))
    alone = statistics.median(cpu for _, cpu in times[1, 1])
    found = []
    for (processes, threads), turns in times.items():
        rate, cpu = (statistics.median(column) for column in zip(*turns, strict=True))
        found.append({"processes": processes, "threads": threads, "images_per_second": round(rate)})
        found[-1] |= {"cpu_ms": round(cpu, 3), "cpu_over_one": round(cpu / alone, 3)}
        print(f"{processes} processes of {threads} threads: {rate:.0f} images/s, {cpu / alone:.2f}")
    print(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg()[0], "ways": found}))


if __name__ == "__main__":
    main()
