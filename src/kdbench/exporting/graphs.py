"""Graphs that run without kdbench: torch.export's .pt2, ONNX, TorchScript."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from kdbench.errors import ConfigError, KdbenchError, first_line
from kdbench.exporting.classifier import Classifier

Run = Callable[[Tensor], Tensor]  # what a file does once it is loaded: images -> outputs
OLDEST_OPSET = 18  # what PyTorch's exporter writes without a conversion
EXAMPLES = 2  # images that a graph is traced with; one would fix the batch at one


def program(classifier: Classifier, images: Tensor) -> torch.export.ExportedProgram:
    """Return the graph of a classifier for batches of any size.

    Raises:
        KdbenchError: the network does what a graph cannot hold.
    """
    batch = ({0: torch.export.Dim("batch")},)
    try:
        with quietly():
            return torch.export.export(classifier, (images[:EXAMPLES],), dynamic_shapes=batch)
    except Exception as error:  # whatever its author thought of
        raise KdbenchError(
            f"the network is no graph for batches of any size ({first_line(error)}): export it "
            "with format=safetensors"
        ) from error


def write_program(classifier: Classifier, images: Tensor) -> bytes:
    """Return a .pt2 file; `torch.export.load(FILE).module()` runs it."""
    file = io.BytesIO()
    with quietly():
        torch.export.save(program(classifier, images), file)
    return file.getvalue()


def load_program(path: Path) -> Run:
    """Return a .pt2 file as PyTorch loads it."""
    with quietly():
        module = torch.export.load(path).module()
    return lambda images: module(images)


def write_onnx(classifier: Classifier, images: Tensor, opset: int = OLDEST_OPSET) -> bytes:
    """Return an ONNX file of that opset, the batch's size left open.

    Raises:
        ConfigError: onnx is not installed, or the opset is too old.
        KdbenchError: ONNX lacks one of the network's operators.
    """
    if opset < OLDEST_OPSET:
        raise ConfigError(f"opset must be {OLDEST_OPSET} or later, not {opset}")
    _need("onnx", "onnxscript")
    exported = program(classifier, images)
    try:
        with quietly():
            made = torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=opset,
                input_names=[classifier.inputs],
                output_names=[classifier.outputs],
                verbose=False,
            )
            assert made is not None
            content: bytes = made.model_proto.SerializeToString()
    except torch.onnx.errors.OnnxExporterError as error:
        raise KdbenchError(
            f"ONNX has no operator for a part of the network ({said_of(error)}): export it with "
            "format=torch_export"
        ) from error
    return content


def said_of(error: BaseException) -> str:
    """Return the text of the exporter's innermost error; the outer ones advise at length."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def load_onnx(path: Path) -> Run:
    """Return an ONNX file in onnxruntime, on the CPU."""
    _need("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda images: torch.from_numpy(session.run(None, {given.name: images.numpy()})[0])


def write_torchscript(classifier: nn.Module, images: Tensor) -> bytes:
    """Trace a TorchScript file, which C++ and mobile still read; PyTorch advises torch.export."""
    file = io.BytesIO()
    with quietly():
        torch.jit.save(torch.jit.trace(classifier, images[:EXAMPLES]), file)
    return file.getvalue()


def load_torchscript(path: Path) -> Run:
    """Return a TorchScript file as PyTorch loads it."""
    with quietly():
        module = torch.jit.load(path)
    return lambda images: module(images)


def _need(*modules: str) -> None:
    for name in modules:
        try:
            import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"format=onnx needs {error.name}: pip install 'kdbench[onnx]'"
            ) from None


@contextmanager
def quietly() -> Iterator[None]:
    """Silence the libraries' advice to their own developers and to users of other formats."""
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
