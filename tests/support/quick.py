"""Which recipes a test takes that is slow for each of them."""

import pytest

from kdbench.assembly.method_pages import recipes
from support.commands import compose_method


def quick_recipes() -> list:
    """All recipes; those around another one than KD, which is there by itself, are long ones."""
    return [pytest.param(name, marks=[pytest.mark.long] * _composite(name)) for name in recipes()]


def _composite(method: str) -> bool:
    inner = compose_method(method).get("inner")
    return inner is not None and inner["name"] != "kd"
