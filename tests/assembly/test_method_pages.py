"""docs/methods.md is what `python -m kdbench.catalogue` prints."""

import pytest

from kdbench.assembly.method_pages import catalogue
from kdbench.config.method_files import Setting, read_page
from support.commands import ROOT


def test_the_page_is_generated(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "methods.md").read_text()
    assert catalogue() == page, "run python -m kdbench.catalogue > docs/methods.md"


def test_a_file_is_taken_apart():
    page = read_page(
        "# EA: Su et al., 2025.\n# kind: wrapper; status: as published\n# 75.46 (paper).\n"
        "# Twice.\ndefaults:\n  - /method@inner: kd\n  - _self_\nname: ea\n_target_: kdbench.x.Y\n"
        "weight: ea  # paper\n# ours:\n# untested\nbound: null\n"
        "inner:\n  temperature: 2.0  # code\n"
    )
    assert page[:5] == (
        "EA",
        "Su et al., 2025.",
        "wrapper",
        "as published",
        ["75.46 (paper).", "Twice."],
    )
    assert page.settings == [
        Setting("weight", "ea", "paper"),
        Setting("bound", "null", "ours: untested"),
        Setting("inner.temperature", "2.0", "code"),
    ]
    with pytest.raises(ValueError, match="second line"):
        read_page("# EA: Su et al.\n# wrapper\nname: ea\n")
