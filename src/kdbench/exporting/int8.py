"""Weights and activations of 8 bits: PyTorch's own static quantisation, for processors.

Convolutions and linear layers take int8 weights, a scale for each output channel, and activations
whose ranges are those of some training images; batch norms are folded before. Nothing is trained.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from kdbench.errors import ConfigError, KdbenchError, first_line
from kdbench.exporting.classifier import Classifier
from kdbench.exporting.graphs import Run, load_torchscript, quietly

CALIBRATION = 512  # training images, as they are, that activations' ranges are taken from
BATCH = 64


def quantised(classifier: Classifier, images: Tensor) -> GraphModule:
    """Return a classifier in int8, its activations' ranges those of `images` [n, C, H, W].

    Raises:
        ConfigError: this PyTorch has no quantisation of its own.
        KdbenchError: the network is nothing that it can take apart.
    """
    try:
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
    except ImportError as error:
        raise ConfigError(
            f"format=int8 needs PyTorch's own quantisation ({first_line(error)}): torch "
            f"{torch.__version__} has none, choose format=torch_export"
        ) from None
    ranges = get_default_qconfig_mapping(torch.backends.quantized.engine)
    try:
        with quietly():
            observed: GraphModule = prepare_fx(classifier, ranges, (images[:1],))
            for batch in images.split(BATCH):
                observed(batch)
            made: nn.Module = convert_fx(observed)
            made(images[:1])
    except Exception as error:  # whatever its author thought of
        raise KdbenchError(
            f"PyTorch cannot quantise this network ({first_line(error)}): choose "
            "format=torch_export or onnx"
        ) from error
    assert isinstance(made, GraphModule)
    return made


def load_int8(path: Path) -> Run:
    """Return a file as PyTorch loads it."""
    return without_warnings(load_torchscript(path))


def without_warnings(run: Run) -> Run:
    """Return a network whose inaccuracies are measured, and need not be warned of."""

    def called(images: Tensor) -> Tensor:
        with quietly():
            return run(images)

    return called
