"""PyTorch's compiler, as every part of kdbench calls it."""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import torch

from kdbench.parallel.overlap import SIZES
from kdbench.system.private import keep_compiled_code

# Variants of one function, such as the losses of every method, that a process may compile.
VARIANTS = 256  # PyTorch's default is 8

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function, fullgraph: bool = False, in_pieces: bool = False) -> Function:
    """Return a function that compiles itself for every shape and module that it meets.

    Args:
        function: of tensors and modules.
        fullgraph: whether an error is raised where it does not compile whole.
        in_pieces: whether it is cut where its parameters fill a message to other ranks. The
            gradients of what is compiled whole come all at once, when its backward pass ends.
    """
    allow_variants()
    backend = pieces() if in_pieces else "inductor"
    found: Any = torch.compile(function, dynamic=False, fullgraph=fullgraph, backend=backend)
    return cast(Function, found)


def pieces() -> Callable[..., Any]:
    """Return the compiler that `torch.compile` uses under `DistributedDataParallel`."""
    from torch._dynamo.backends.distributed import DDPOptimizer  # slow to import, as below
    from torch._dynamo.backends.registry import lookup_backend

    first, further = SIZES
    cutter = DDPOptimizer(further, lookup_backend("inductor"), first_bucket_cap=first)
    compile_pieces: Callable[..., Any] = cutter.compile_fn
    return compile_pieces


@cache
def allow_variants() -> None:
    """Raise the limit on variants, and let compiled code be kept on disk."""
    from torch._dynamo import config as dynamo  # takes a second to import, and is seldom used

    keep_compiled_code()
    settings: Any = dynamo  # its attributes are made at run time
    settings.recompile_limit = VARIANTS
