"""Where the files of configuration groups are."""

from pathlib import Path


def conf_dir() -> Path:
    """The folder of configuration groups: inside an installed package, else the checkout's."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"
