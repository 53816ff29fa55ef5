"""Names in Weights & Biases, and its environment variables as defaults."""

import hashlib
import os
import re
import unicodedata
from pathlib import Path
from typing import Literal

from kdbench.errors import ConfigError, nearest

Mode = Literal["offline", "online", "disabled"]

NAME_LENGTH = 128  # the longest id, and the longest name of an artifact, that W&B takes
PROJECT = "kdbench"  # the default, without configuration or environment
MODES: dict[str, Mode] = {  # by value of WANDB_MODE
    "offline": "offline",
    "online": "online",
    "disabled": "disabled",
    "dryrun": "offline",
    "run": "online",
}


def place_of(project: str | None, entity: str | None) -> tuple[str, str | None]:
    """Return project and entity: as set, else from W&B's variables, else ours."""
    return (
        project or os.environ.get("WANDB_PROJECT") or PROJECT,
        entity or os.environ.get("WANDB_ENTITY") or None,
    )


def mode_of(mode: Mode | None) -> Mode:
    """Return the mode: as set, else from WANDB_MODE, else offline.

    Raises:
        ConfigError: WANDB_MODE is no mode.
    """
    said = os.environ.get("WANDB_MODE") or "offline"
    if mode is None and said not in MODES:
        raise ConfigError(f"WANDB_MODE={said} is no mode of W&B: {nearest(said, MODES)}")
    return mode or MODES[said]


def folder_of(folder: Path | None, usual: Path) -> Path:
    """Return the folder of W&B's files: as set, else WANDB_DIR, else the usual place."""
    said = os.environ.get("WANDB_DIR")
    return folder or (Path(said) if said else usual)


def safe(name: str, also: str = "+") -> str:
    """Return a name that W&B accepts: unchanged where possible, else readable with a digest.

    Args:
        name: the name of a run, a cell or an artifact.
        also: characters allowed besides ASCII letters, digits, dot, dash and underscore.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(rf"[^A-Za-z0-9_.{re.escape(also)}-]", "_", plain)
    if plain == name and 0 < len(name) <= NAME_LENGTH:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{plain[: NAME_LENGTH - 9]}-{digest}"
