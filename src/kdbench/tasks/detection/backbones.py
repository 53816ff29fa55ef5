"""Files of ImageNet weights that detectors start from, as runs are named by them."""

from dataclasses import replace

from kdbench.errors import KdbenchError
from kdbench.records.passport import sha256_of
from kdbench.records.settings import TeacherSettings
from kdbench.schema.node import Node
from kdbench.system.files import named_path


def without_backbone(teacher: TeacherSettings) -> TeacherSettings:
    """Return a teacher without its backbone's file, which its own weights replace."""
    return replace(teacher, network=teacher.network.having(backbone=None))


def by_content(student: Node) -> Node:
    """Return a student's node with its backbone's file named by content, for the run's hash.

    Raises:
        KdbenchError: the file is missing.
    """
    backbone = student.settings["backbone"]
    if backbone is None:
        return student
    path = named_path(backbone)
    if not path.is_file():
        raise KdbenchError(f"no file {path}: set student.backbone=FILE, or null to start from none")
    return student.having(backbone=f"sha256 {sha256_of(path)}")
