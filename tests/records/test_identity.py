"""Names of runs."""

from kdbench.records.identity import short_names

CE, KD = "digits-none-resnet8-ce-s0-fc4a7e32", "digits-resnet20-resnet8-kd-s0-97bcf12b"


def test_short_names_are_method_and_seed():
    assert short_names([CE, KD]) == {CE: "ce 0", KD: "kd 0"}


def test_short_names_tell_students_apart_and_else_settings():
    other = "digits-resnet20-resnet14-kd-s0-0a1b2c3d"
    assert short_names([KD, other]) == {KD: "resnet8 kd 0", other: "resnet14 kd 0"}
    hotter = "digits-resnet20-resnet8-kd-s0-11111111"
    assert short_names([CE, KD, hotter]) == {
        CE: "ce 0 fc4a7e32",
        KD: "kd 0 97bcf12b",
        hotter: "kd 0 11111111",
    }
