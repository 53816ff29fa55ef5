"""The numerical tests as other processors would compute; for `make test-processors`.

PyTorch and oneDNN choose their kernels by the processor. Each setting here holds them to those of
an older one, or to another number of threads: a tolerance that only one machine meets is seen.
"""

import os
import subprocess
import sys
import time

import torch

TESTS = (
    *("methods", "test_golden.py", "assembly/test_evaluation.py"),
    *("networks/test_heads.py", "networks/test_folding.py", "teachers/test_outputs.py"),
)
# These take minutes; what they compare is compared in the others, a recipe at a time.
SLOW = ("tests/methods/test_learning.py", "tests/methods/test_contract.py")
SETTINGS = (
    {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"},
    {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "2"},
)


def lacks(setting: dict[str, str]) -> str | None:
    """What this processor has not that a setting needs."""
    has_avx2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return "AVX2" if setting.get("ATEN_CPU_CAPABILITY") == "avx2" and not has_avx2 else None


def main() -> None:
    """Run them under each setting; exit 1 where a test fails under one."""
    failed = False
    for setting in SETTINGS:
        name = " ".join(f"{key}={value}" for key, value in setting.items())
        if missing := lacks(setting):
            print(f"{name}: left out, this processor has no {missing}", flush=True)
            continue
        started = time.monotonic()
        tests = [f"tests/{test}" for test in TESTS]
        parallel = ["-n", "auto", "--maxprocesses", "8", "--dist", "loadfile"]
        left_out = [f"--ignore={path}" for path in SLOW]
        chosen = ["-m", "not slow and not long", *left_out, *tests]
        command = [sys.executable, "-m", "pytest", *parallel, *chosen]
        code = subprocess.run(command, env={**os.environ, **setting}, check=False).returncode
        failed |= code != 0
        ended = "fails" if code else "passes"
        print(f"{name}: {ended}, {time.monotonic() - started:.0f} s", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
