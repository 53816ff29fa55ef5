"""What a test needs of the machine that it runs on, and says where the machine has it not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdbench.types import Output

COUNT = 64  # numbers, so many that vectors are used


def needs_equal_rows(network: Callable[[Tensor], Output], images: Tensor, *sizes: int) -> None:
    """Skip where an image's answer depends on the size of the batch that it is in.

    Libraries may choose another kernel for another size, which rounds otherwise; which sizes share
    one is the processor's.
    """
    with torch.no_grad():
        whole = network(images).logits
        for size in sizes:
            parts = torch.cat([network(part).logits for part in images.split(size)])
            torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-3)
            if not torch.equal(parts, whole):
                pytest.skip(
                    f"on this processor images are rounded otherwise in batches of {size} than in "
                    f"one of {len(images)}"
                )


def needs_compiler() -> None:
    """Skip where PyTorch cannot compile, for want of a C++ compiler that knows its kernels."""
    try:
        torch.compile(lambda x: x + 1, dynamic=False)(torch.ones(COUNT))
    except Exception as error:  # anything that the compiler or its tools may raise
        pytest.skip(f"PyTorch compiles nothing here ({type(error).__name__})")
