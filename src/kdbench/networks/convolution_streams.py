"""Plain convolutions of a stack on several streams: a small one leaves most of a GPU idle."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from kdbench.networks.convolution_insides import Call, calls

STREAMS = 4


def on_streams(given: Sequence[Call]) -> list[Tensor]:
    """Do calls on side streams in turn; the current stream waits for all of them.

    In a recording they become its branches. Their results keep their memory to the recording's
    end, since another stream reads them.
    """
    current = torch.cuda.current_stream()
    sides = side_streams(current)[: len(given)]
    for side in sides:
        side.wait_stream(current)
    found = []
    for number, call in enumerate(given):
        with torch.cuda.stream(sides[number % len(sides)]):
            found.append(call())
    for side in sides:
        current.wait_stream(side)
    for result in found:
        result.record_stream(current)
    return found


@cache
def side_streams(stream: torch.cuda.Stream) -> list[torch.cuda.Stream]:
    """Return the streams beside a stream, so that runs on streams of their own share none."""
    return [torch.cuda.Stream(stream.device) for _ in range(STREAMS)]


STREAM_INSIDES = {"streams": calls(on_streams)}
