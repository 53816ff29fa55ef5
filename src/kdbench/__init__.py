"""kdbench: the open benchmark of knowledge distillation for image classification.

    distiller = kdbench.Distiller("kd", student, teacher, example=images)
    loss, logs = distiller(images, labels)

For people with a training loop of their own; see docs/library.md. `kdbench.methods()` lists the
recipes, `kdbench.losses` holds the losses as pure functions.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kdbench import methods

if TYPE_CHECKING:
    from kdbench import losses as losses
    from kdbench.distillation.distiller import Distiller as Distiller
    from kdbench.distillation.recipes import MethodInfo

__version__ = "0.1.0"
__all__ = ["Distiller", "losses", "methods"]


class _Methods(ModuleType):
    """The package of the methods, which is called to list them."""

    def __call__(self) -> "list[MethodInfo]":
        """Every recipe by name, with its kind and paper."""
        from kdbench.distillation.recipes import list_methods

        return list_methods()


methods.__class__ = _Methods


def __getattr__(name: str) -> Any:
    # On demand, for torch takes seconds to import: a mistake in a command is told before.
    if name == "Distiller":
        return import_module("kdbench.distillation.distiller").Distiller
    if name == "losses":
        return import_module("kdbench.losses")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
