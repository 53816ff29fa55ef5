"""The keys of a whole configuration: those of the files that commands start from."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Literal

from kdbench.config.kinds import SHAPED_BY_DATA, kind_of, listed
from kdbench.errors import ConfigError, nearest
from kdbench.parallel.torchrun import place
from kdbench.records.passport import Passport
from kdbench.records.settings import (
    AnalyseSettings,
    EvaluateSettings,
    ExportSettings,
    Start,
    TeacherSettings,
    TrainSettings,
)
from kdbench.schema.check import (
    check_node,
    check_plain,
    convert,
    hints_of,
    refuse_unknown,
)
from kdbench.schema.node import Node
from kdbench.schema.secrets import refuse_secrets

START = ("checkpoint", "checkpoint_key")  # of a student: which weights it starts from
OPTIONAL = {"checkpoint_key": str | None, "allow_chance": bool}  # of a teacher
OWN = {  # keys that stand in no node
    "seed": int,
    "runs_dir": str,
    "checkpoint": str | None,
    "checkpoint_key": str | None,
    "root": str | None,
    "out": str,
    "run": str | None,
    "licence": str | None,
    "teacher_file": str | None,
}
MEASURES = ["correlation", "entropy", "calibration", "embedding", "similarity", "agreement"]
Measure = Literal[  # the last three take long, or are of one machine: they are not of "all"
    "correlation", "entropy", "calibration", "embedding", "similarity", "agreement",
    "transfer", "robustness", "cost",
]  # fmt: skip

Format = Literal["torch_export", "onnx", "torchscript", "int8", "safetensors", "hub"]


def check_train(raw: Mapping[str, Any]) -> TrainSettings:
    """A training run's configuration, complete and normalised.

    Raises:
        ConfigError: a key is unknown, missing or ill-typed.
    """
    detects = "task" in raw
    keys: dict[str, Callable[[str, Any], Any]] = {
        "method": _node,
        "teacher": partial(_teachers, detects=detects),
        "student": partial(_student, detects=detects),
        "dataset": partial(_node, detects=detects),
        "schedule": partial(_schedule, detects=detects),
        "runtime": _node,
        "logger": _node,
        "seed": _typed(OWN["seed"]),
        "runs_dir": _typed(OWN["runs_dir"]),
    }
    if detects:
        keys["task"] = _typed(Literal["detection"])
    checked = _check_keys(raw, keys)
    if checked["seed"] < 0:
        raise ConfigError(f"seed must be 0 or more, not {checked['seed']}")
    return TrainSettings(**checked, start=_start(raw["student"], detects))


def check_evaluate(raw: Mapping[str, Any]) -> EvaluateSettings:
    """An evaluation's configuration, complete and normalised.

    Raises:
        ConfigError: a key is unknown, missing or ill-typed.
    """
    detects = "task" in raw
    keys: dict[str, Callable[[str, Any], Any]] = {
        "student": partial(_network, detects=detects),
        "dataset": partial(_node, detects=detects),
        "runtime": _node,
        "checkpoint": _typed(OWN["checkpoint"]),
        "checkpoint_key": _typed(OWN["checkpoint_key"]),
        "runs_dir": _typed(OWN["runs_dir"]),
    }
    if detects:
        keys["task"] = _typed(Literal["detection"])
    return EvaluateSettings(**_check_keys(raw, keys))


def check_analyse(raw: Mapping[str, Any]) -> AnalyseSettings:
    """An analysis' configuration, complete and normalised; several runs and measures as lists.

    Raises:
        ConfigError: a key is unknown, missing or ill-typed.
    """
    several = {key: _listed_words(raw.get(key)) for key in ("runs", "what")}
    if several["what"] == ["all"]:
        several["what"] = MEASURES
    keys: dict[str, Callable[[str, Any], Any]] = {
        "runs": _typed(list[str]),
        "what": _typed(list[Measure]),
        "dataset": _data_or_none,
        "transfer": _data_or_none,
        "corrupted": _typed(str | None),
        "runtime": _node,
        **{key: _typed(OWN[key]) for key in ("root", "teacher_file", "out", "runs_dir")},
    }
    return AnalyseSettings(
        **_check_keys({"dataset": None, "transfer": None, **raw, **several}, keys)
    )


def check_export(raw: Mapping[str, Any]) -> ExportSettings:
    """An export's configuration, complete and normalised.

    Raises:
        ConfigError: a key is unknown, missing or ill-typed.
    """
    keys: dict[str, Callable[[str, Any], Any]] = {
        "format": _typed(Format),
        "keys": _typed(Literal["repdistiller", "timm", "torchvision"]),
        "pixels": _typed(bool),
        "opset": _typed(int),
        "dataset": _data_or_none,
        **{key: _typed(OWN[key]) for key in ("run", "licence", "root", "out", "runs_dir")},
    }
    return ExportSettings(**_check_keys({"dataset": None, **raw}, keys))


def _listed_words(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _data_or_none(path: str, node: Any) -> Node | None:
    if node is None:
        return None
    kind = kind_of(path, "dataset", node, False)
    checked = check_node(path, node, kind=kind, listed=listed("dataset"))
    _check_named(path, node)
    return checked


def takes_text(config: Mapping[str, Any], key: str) -> bool:
    """Whether a key such as "dataset.root" of a composed configuration takes text and no number.

    Nothing is imported for a key that stands in no node.
    """
    *path, last = key.split(".")
    node: Any = config
    for part in path:
        node = node.get(part) if isinstance(node, Mapping) else None
    hint: Any = None
    if isinstance(node, Mapping) and "_target_" in node:
        with suppress(ConfigError):  # of its target, which is told when all is checked
            hint = str if last == "name" else hints_of(".".join(path), node).get(last)
    elif path[:1] == ["teacher"] and path[-1:] == ["passport"]:
        hint = Passport.__annotations__.get(last)
    elif not path or path[:-1] == ["teacher"]:
        hint = OWN.get(last)
    return hint in (str, str | None)


def _check_keys(
    raw: Mapping[str, Any], keys: dict[str, Callable[[str, Any], Any]]
) -> dict[str, Any]:
    refuse_secrets(raw)
    check_plain("", raw)
    for key in raw:
        if key not in keys:
            choices = [*keys, "experiments", "task"]
            raise ConfigError(f"unknown key '{key}': {nearest(str(key), choices)}")
    for key in keys:
        if key not in raw:
            raise ConfigError(f"{key} is missing: choose one with {key}=...")
    return {key: check(key, raw[key]) for key, check in keys.items()}


def _typed(hint: Any) -> Callable[[str, Any], Any]:
    return lambda path, value: convert(path, value, hint)


def _node(path: str, node: Any, detects: bool = False) -> Node:
    kind = kind_of(path, path, node, detects)
    checked = check_node(path, node, kind=kind, listed=listed(path))
    _check_named(path, node)
    return checked


def _schedule(path: str, node: Any, detects: bool = False) -> Node:
    if isinstance(node, Mapping) and node.get("micro_batches", 1) is None:
        node = {**node, "micro_batches": place().count}
    return _node(path, node, detects)


def _network(path: str, node: Any, detects: bool = False) -> Node:
    kind = kind_of(path, "network", node, detects)
    checked = check_node(path, node, SHAPED_BY_DATA, kind, listed("network"))
    _check_named(path, node)
    return checked


def _student(path: str, node: Any, detects: bool = False) -> Node:
    return _network(path, without_start(node), detects)


def without_start(node: Any) -> Any:
    """A student's node without the weights that it starts from, which are no setting of it."""
    if not isinstance(node, Mapping):
        return node
    return {key: value for key, value in node.items() if key not in START}


def _start(student: Mapping[str, Any], detects: bool) -> Start | None:
    """Where a student's first weights come from; None where they are random.

    Raises:
        ConfigError: a key is of the wrong type, or there is nothing that it is of.
    """
    given = {key: convert(f"student.{key}", student.get(key), str | None) for key in START}
    start = {key: value for key, value in given.items() if value is not None}
    if start and detects:
        raise ConfigError("a detector starts from a backbone: set student.backbone=FILE instead")
    if start and "checkpoint" not in start:
        raise ConfigError("student.checkpoint_key is of a file: set student.checkpoint=FILE too")
    return Start(**start) if start else None


def _check_named(path: str, node: Mapping[str, Any]) -> None:
    if "name" not in node:
        raise ConfigError(f"{path}.name is missing: name it in its file, cells are called after it")
    _check_name(f"{path}.name", node["name"])


def _check_name(path: str, name: str) -> None:
    if not (name and name.isprintable()):
        raise ConfigError(f"{path}={name!r} cannot name a folder: use letters and digits")


def _teachers(path: str, node: Any, detects: bool = False) -> dict[str, TeacherSettings]:
    teachers = convert(path, node, dict[str, object])
    fields = ["network", "checkpoint", "passport", *OPTIONAL]
    for name, teacher in teachers.items():
        _check_name(f"a name in {path}", name)
        if not isinstance(teacher, Mapping):
            owner = next((n for n, t in teachers.items() if isinstance(t, Mapping)), "NAME")
            raise ConfigError(f"unknown key '{path}.{name}': did you mean '{path}.{owner}.{name}'?")
        refuse_unknown(f"{path}.{name}", teacher, fields)
        if "network" not in teacher:
            raise ConfigError(f"{path}.{name}.network is missing: choose a file of conf/teacher")
    return {
        name: TeacherSettings(
            network=_student(f"{path}.{name}.network", teacher["network"], detects),
            checkpoint=convert(f"{path}.{name}.checkpoint", teacher["checkpoint"], str | None),
            passport=_passport(f"{path}.{name}.passport", teacher.get("passport")),
            **_optional(f"{path}.{name}", teacher),
        )
        for name, teacher in teachers.items()
    }


def _optional(path: str, teacher: Mapping[str, Any]) -> dict[str, Any]:
    """A teacher's further keys, where they are given."""
    return {
        key: convert(f"{path}.{key}", teacher[key], hint)
        for key, hint in OPTIONAL.items()
        if key in teacher
    }


def _passport(path: str, node: Any) -> Passport | None:
    if node is None:
        return None
    passport = convert(path, node, dict[str, Any])
    hints = Passport.__annotations__
    refuse_unknown(path, passport, list(hints))
    facts = {key: convert(f"{path}.{key}", value, hints[key]) for key, value in passport.items()}
    return Passport(**facts)
