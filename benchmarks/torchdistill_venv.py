"""Make .venv-torchdistill: torchdistill from PyPI on top of the PyTorch that runs this file.

Where that fails or takes too long, one line says so, and the benchmark goes on without it.
"""

import site
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / ".venv-torchdistill"
PYTHON = FOLDER / "bin" / "python"
SECONDS = 600


def install() -> None:
    """The environment, its sight of this one's packages, torchdistill and what else it needs."""
    venv.create(FOLDER, with_pip=True)
    (inside,) = FOLDER.glob("lib/python*/site-packages")
    (inside / "kdbench.pth").write_text(
        "".join(f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages())
    )
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "torchdistill==1.1.5"]
    subprocess.run(pip, check=True, timeout=SECONDS)


def main() -> None:
    """Install it where it is not there yet."""
    check = [str(PYTHON), "-c", "import torchdistill"]
    if PYTHON.is_file() and subprocess.run(check, capture_output=True).returncode == 0:
        return
    try:
        install()
    except (OSError, subprocess.SubprocessError) as error:
        print(f"torchdistill could not be installed: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
