"""PyTorch's compiler, as every part of kdbench calls it."""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import torch

from kdbench.system.private import keep_compiled_code

# Variants of one function, such as the losses of every method, that a process may compile.
VARIANTS = 256  # PyTorch's default is 8

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function, fullgraph: bool = False) -> Function:
    """Return a function that compiles itself for every shape and module that it meets.

    Args:
        function: of tensors and modules.
        fullgraph: whether an error is raised where it does not compile whole.
    """
    allow_variants()
    found: Any = torch.compile(function, dynamic=False, fullgraph=fullgraph)
    return cast(Function, found)


@cache
def allow_variants() -> None:
    """Raise the limit on variants, and let compiled code be kept on disk."""
    from torch._dynamo import config as dynamo  # takes a second to import, and is seldom used

    keep_compiled_code()
    settings: Any = dynamo  # its attributes are made at run time
    settings.recompile_limit = VARIANTS
