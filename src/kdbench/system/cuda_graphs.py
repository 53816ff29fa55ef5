"""Steps that are recorded once and replayed: a CUDA graph launches a whole step as one.

A recording reads and writes fixed memory, so its inputs are copied into buffers of its own before
each replay, and each replay overwrites the last one's results. A recording serves one shape of the
inputs; a full batch and the last, short one are two recordings. The first calls of each shape run
eagerly: they are real steps, and warm up what a recording may not do itself (choosing kernels,
making the optimizer's buffers). Source: "CUDA semantics, whole-network capture" of PyTorch's notes.

Every recorder has a stream of its own. Small networks leave most of a GPU idle, so the runs of a
cohort compute concurrently, and concurrently with the teacher's forward pass of the next step: the
caller waits until a step's inputs have been copied, not until the step is done.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from kdbench.errors import first_line
from kdbench.system.runtime import Runtime

WARM_UP = 3  # calls of each shape before it is recorded

Run = Callable[..., Any]


class Recorder(Protocol):
    """Warm-up and recording of calls; the tests have an implementation that needs no GPU."""

    def warm_up(self, run: Run, inputs: tuple[Any, ...]) -> Any:
        """Run `run` once, on the stream of its recording."""

    def record(self, run: Run, inputs: tuple[Any, ...]) -> Callable[[], Any]:
        """Record `run` on these tensors, without effect; return a function that replays it."""

    def inputs_read(self) -> None:
        """Mark the point from which the inputs of a call may be overwritten."""

    def aside(self) -> AbstractContextManager[None]:
        """Run the enclosed calls on this recorder's stream.

        The caller waits only until the inputs are copied (`inputs_read`).
        """

    def join(self) -> None:
        """Let later work wait for all calls made in `aside`."""


class CudaGraphs:
    """Recordings on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.read = torch.cuda.Event()

    def warm_up(self, run: Run, inputs: tuple[Any, ...]) -> Any:
        """Run it on the recorder's stream, in order with the calls around it."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = run(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs

    def record(self, run: Run, inputs: tuple[Any, ...]) -> Callable[[], Any]:
        """Record one graph with memory of its own."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            outputs = run(*inputs)

        def replay() -> Any:
            graph.replay()
            return outputs

        return replay

    def inputs_read(self) -> None:
        """Mark this point in the current stream."""
        self.read.record()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Run the enclosed calls on the recorder's stream."""
        caller = torch.cuda.current_stream()
        self.stream.wait_stream(caller)
        with torch.cuda.stream(self.stream):
            yield
        caller.wait_event(self.read)

    def join(self) -> None:
        """Let the current stream wait, but not the host."""
        torch.cuda.current_stream().wait_stream(self.stream)


def recorder_for(runtime: Runtime) -> Recorder | None:
    """Return CUDA graphs on a GPU, unless runtime.compile=off; None where steps run eagerly."""
    if runtime.device.type != "cuda" or runtime.compile == "off":
        return None
    return CudaGraphs(runtime.device)


class Recording(NamedTuple):
    """One shape's buffers, and the replay that reads them."""

    inputs: tuple[Any, ...]
    replay: Callable[[], Any]


class Replayed:
    """A function of tensors that is recorded for each shape of its inputs, and then replayed.

    Its results must be read before the next call. A function that cannot be recorded runs eagerly
    from then on, after one message.
    """

    def __init__(
        self, run: Run, recorder: Recorder, name: str, report: Callable[[str], None]
    ) -> None:
        self.run, self.recorder, self.name, self.report = run, recorder, name, report
        self.seen: dict[tuple[Any, ...], int] = {}
        self.recordings: dict[tuple[Any, ...], Recording] = {}
        self.refused = False

    def __call__(self, *inputs: Any) -> Any:
        """Return `run(*inputs)`."""
        recording = self._recording(inputs)
        if recording is None:
            outputs = self.recorder.warm_up(self.run, inputs)
            self.recorder.inputs_read()
            return outputs
        for kept, fresh in zip(tensors_of(recording.inputs), tensors_of(inputs), strict=True):
            kept.copy_(fresh, non_blocking=True)
        self.recorder.inputs_read()
        return recording.replay()

    def _recording(self, inputs: tuple[Any, ...]) -> Recording | None:
        """Return the recording of this shape, made once it is warm; None where there is none."""
        if self.refused:
            return None
        shape = tuple((t.shape, t.stride(), t.dtype) for t in tensors_of(inputs))
        if shape not in self.recordings:
            self.seen[shape] = self.seen.get(shape, 0) + 1
            if self.seen[shape] > WARM_UP:
                self._record(shape, inputs)
        return self.recordings.get(shape)

    def refuse(self, reason: str) -> None:
        """Record nothing from now on, and say why."""
        self.refused = True
        self.recordings.clear()
        self.report(f"{self.name} runs without a CUDA graph: {reason}")

    def _record(self, shape: tuple[Any, ...], inputs: tuple[Any, ...]) -> None:
        kept = mapped(lambda tensor: torch.empty_like(tensor).copy_(tensor), inputs)
        try:
            self.recordings[shape] = Recording(kept, self.recorder.record(self.run, kept))
        except Exception as error:  # from the driver, PyTorch, or a method that reads values
            self.refuse(first_line(error))


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples and dictionaries, always in the same order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple):
        for part in tree:
            yield from tensors_of(part)
    elif isinstance(tree, dict):
        for part in tree.values():
            yield from tensors_of(part)


def mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Return the same nesting of tuples and dictionaries with `function` of each tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: mapped(function, part) for key, part in tree.items()}
    if isinstance(tree, tuple):
        parts = [mapped(function, part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree
