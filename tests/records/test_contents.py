"""Settings and records as typed objects, and as the JSON that they are read from and written to."""

import json

import pytest

from kdbench.errors import ConfigError
from kdbench.records.contents import ClassifierRecord, FailedRecord
from kdbench.records.reading import record_of
from kdbench.records.settings import TrainSettings
from support.commands import compose
from support.records import fail, make_record


def test_settings_come_through_a_pipe_as_they_were():
    given = compose(
        *("method=ea_kd", "teacher=[resnet56,resnet20]", "student.checkpoint=x.pth"),
        *("+teacher.resnet56.checkpoint_key=ema", "teacher.resnet20.passport={top1:70.0}"),
    )
    assert given.teacher["resnet20"].passport.top1 == 70.0
    assert TrainSettings.read(json.loads(json.dumps(given.spelt()))) == given


@pytest.mark.parametrize("content", [make_record(), fail(make_record())], ids=["done", "failed"])
def test_a_record_keeps_what_other_versions_have_written(content):
    content["hardware"] = {**content["hardware"], "fans": 2}
    content = {**content, "weather": None}
    record = record_of(content)
    assert isinstance(record, ClassifierRecord if content["status"] == "done" else FailedRecord)
    assert "weather" in record.rest
    assert record.hardware.rest == {"fans": 2}
    assert record.spelt() == content
    assert record_of(record.spelt()) == record


def test_numbers_stay_as_they_were_written():
    assert json.dumps(record_of(make_record(top1=70)).spelt()["top1_last"]) == "70"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"hardware": {"cpu": "x", "threads": 2, "gpu": None}}, "hardware.gpu must be text"),
        ({"data": None}, "data.name is missing"),
        ({"companions": "two"}, "companions must be a whole number"),
    ],
)
def test_a_field_of_another_type_is_one_line(changes, line):
    with pytest.raises(ConfigError, match=line):
        record_of(make_record(**changes))


@pytest.mark.parametrize("key", ["status", "config.schedule.batch_size", "config.schedule.epochs"])
def test_a_field_that_is_not_there_is_one_line(key):
    content = make_record()
    *path, last = key.split(".")
    node = content
    for part in path:
        node = node[part]
    del node[last]
    with pytest.raises(ConfigError, match=f"^{key} is missing$"):
        record_of(content)
