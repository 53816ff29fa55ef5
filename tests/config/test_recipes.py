"""What conf has for a run, and where the run departs from it."""

import copy

import hydra
import pytest

from kdbench.config import hydra_cli
from kdbench.config.conf_files import conf_dir
from kdbench.config.conf_nodes import compose, names, read, without_inferred
from kdbench.config.recipes import equal, recipe_of, reconstructed
from kdbench.records.contents import RecordedSettings
from support.commands import ROOT, compose_method
from support.records import make_record

PAIR = "pair=resnet32x4_resnet8x4"  # of hand-made records


def recipe(config: dict):
    return recipe_of(RecordedSettings.read(config))


def config(method: str = "kd", **settings):
    return copy.deepcopy(make_record(method, settings=settings)["config"])


@pytest.mark.parametrize("method", [*names("method")[::6], "ea_ls_kd", "er_dkd", "kd_pp"])
def test_files_are_composed_as_hydra_does(method):
    ours, hydra = without_inferred(compose("method", method)), compose_method(method, PAIR)
    found = recipe({**config(), "method": {**hydra, "name": method}})
    assert ours.keys() == hydra.keys()
    assert (found.method, found.departures) == (method, ())


def test_a_recipe_is_what_a_run_calls_not_its_name():
    assert recipe(config("dynamickd")).reconstructed
    renamed = config("dynamickd")
    renamed["method"]["name"] = "mine"
    assert recipe(renamed)[::2] == ("dynamickd", True)
    false = config("dkd")
    false["method"]["name"] = "kd"
    assert recipe(false).method == "dkd"
    mine = config("kd")
    mine["method"]["_target_"] = "mylab.methods.KD"
    (departure,) = recipe(mine).departures
    assert (departure.key, departure.ours) == ("_target_", "mylab.methods.KD")


def test_settings_of_a_pair_are_conf_s():
    tuned, plain = config("dkd", nckd_weight=6.0), config("dkd")
    for one in (tuned, plain):
        one["student"]["name"] = "vgg8"
        one["teacher"] = {"vgg13": {"network": {"name": "vgg13"}}}
    assert recipe(tuned).departures == ()
    (departure,) = recipe(plain).departures
    assert str(departure) == "nckd_weight 8.0 where conf/tuned/dkd/vgg13_vgg8.yaml has 6.0"


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"lr": 0.1}, ["schedule.lr"]),
        ({"epochs": 12, "batch_size": 8, "precision": "bf16"}, []),  # the protocol says them
        ({"weight_decay": 5e-4, "micro_batches": 1}, []),
        ({"micro_batches": 4, "gamma": 0.2}, ["schedule.gamma", "schedule.micro_batches"]),
    ],
)
def test_a_schedule_departs_in_what_the_protocol_does_not_say(schedule, expected):
    changed = config()
    changed["schedule"] |= schedule
    assert sorted(one.key for one in recipe(changed).departures) == expected


def test_a_number_departs_from_a_word_and_not_from_a_number_as_text():
    """YAML reads 1e-3 as text."""
    changed = config()
    changed["schedule"] = {"name": "a2", "decay": 0.5}
    (departure,) = recipe(changed).departures
    assert str(departure) == "schedule.decay 0.5 where conf/schedule/a2.yaml has cosine"
    assert equal(0.001, "1e-3")


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ({"flip": False, "pad": 0}, ["dataset.flip", "dataset.pad"]),
        ({"root": "/elsewhere", "fraction": 0.5, "val_split": 5000}, []),  # a place; the protocol
        ({"name": "mine", "flip": False}, []),  # a data set of one's own
    ],
)
def test_pixels_depart_from_the_data_set_s_file(dataset, expected):
    changed = config()
    changed["dataset"] |= dataset
    assert sorted(one.key for one in recipe(changed).departures) == expected


def test_settings_that_a_student_has_are_conf_s():
    small = config()
    small["student"]["name"] = "ShuffleV1"
    small["schedule"]["lr"] = 0.01
    assert recipe(small).departures == ()


def listed(node, path=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from listed(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


METHODS = sorted((ROOT / "conf" / "method").glob("*.yaml"))


def test_a_method_is_composed_as_by_hydra():
    """Every file of conf/method, in one composition of Hydra's: it takes 0.1 s for each alone."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        all_at_once = [f"+method@every.m{i}={path.stem}" for i, path in enumerate(METHODS)]
        composed = hydra_cli.plain(hydra.compose("config", all_at_once))["every"]
    for i, path in enumerate(METHODS):
        assert compose("method", path.stem) == composed[f"m{i}"], path.stem


FILES = [*METHODS]
FILES += sorted((ROOT / "conf" / "tuned").glob("*/*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_inferred_settings_are_listed_where_a_comment_says_so(path):
    if path.parent.name == "method":
        whole, own = compose("method", path.stem), read("method", path.stem)
    else:
        own = read(f"tuned/{path.parent.name}", path.stem)["method"]
        whole = compose("method", path.parent.name)
    inferred = own.get("inferred", [])
    assert set(inferred) <= set(listed(whole))
    assert bool(inferred) == ("INFERRED" in path.read_text())


def test_the_word_in_a_comment_is_no_field(tmp_path, monkeypatch):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "prose.yaml").write_text(
        "# X: a paper.\n# kind: logit; status: as published\n"
        "# not INFERRED; status: reconstructed\nname: prose\n_target_: x.Y\na: 1  # INFERRED: no\n"
    )
    monkeypatch.setattr("kdbench.config.conf_nodes.conf_dir", lambda: tmp_path)
    for cached in (compose, read, reconstructed):
        cached.cache_clear()
    assert not reconstructed("prose", None)
    for cached in (compose, read, reconstructed):
        cached.cache_clear()
