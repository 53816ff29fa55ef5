"""The task of a configuration."""

from dataclasses import replace

from kdbench.records.settings import TaskName, TrainSettings
from kdbench.tasks.classification.task import Classification
from kdbench.tasks.task import Task


def task_called(name: TaskName) -> type[Task]:
    """Return the class of a task."""
    if name == "detection":
        from kdbench.tasks.detection.task import Detection  # slow to import

        return Detection
    return Classification


def named_by_content(config: TrainSettings) -> TrainSettings:
    """Return the configuration that a run is named and recorded by: files by what is in them.

    A student's backbone is identified by its file's content; a teacher's own weights replace its.

    Raises:
        KdbenchError: a file is missing.
    """
    if config.task != "detection":
        return config
    from kdbench.tasks.detection.backbones import by_content, without_backbone

    teachers = {name: without_backbone(one) for name, one in config.teacher.items()}
    return replace(config, teacher=teachers, student=by_content(config.student))
