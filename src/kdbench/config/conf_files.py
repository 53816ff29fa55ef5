"""The place of the configuration files."""

from pathlib import Path


def conf_dir() -> Path:
    """Return the folder of configuration groups: in the installed package, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"
