"""conf/tuned/<method>/<pair>.yaml: what a recipe's authors set for one teacher and student."""

from pathlib import Path

import pytest

from kdbench.schema.check import check_node
from support.commands import ROOT, compose_method

FILES = sorted((ROOT / "conf" / "tuned").glob("*/*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_it_changes_a_recipe_for_a_pair(path: Path):
    method, pair = path.parent.name, path.stem
    assert (ROOT / "conf" / "method" / f"{method}.yaml").is_file(), f"no method is called {method}"
    assert (ROOT / "conf" / "pair" / f"{pair}.yaml").is_file(), f"no pair is called {pair}"
    assert path.read_text().startswith("# "), "the first line says the source"
    tuned = check_node("method", compose_method(method, f"pair={pair}"))
    assert tuned != check_node("method", compose_method(method)), "it changes nothing"


def test_dkd_s_beta_by_pair():
    """mdistiller's settings; other pairs have none, and keep the default."""
    six = ["vgg13_vgg8", "vgg13_MobileNetV2", "wrn_40_2_wrn_16_2", "wrn_40_2_wrn_40_1"]
    expected = {"resnet56_resnet20": 2, "resnet110_resnet32": 2} | dict.fromkeys(six, 6)
    expected |= {"imagenet_ResNet34_ResNet18": 0.5, "imagenet_ResNet50_MobileNetV1": 2}
    pairs = [path.stem for path in (ROOT / "conf" / "pair").glob("*.yaml")]
    found = {pair: compose_method("dkd", f"pair={pair}")["nckd_weight"] for pair in pairs}
    assert found == {pair: expected.get(pair, 8) for pair in pairs}
