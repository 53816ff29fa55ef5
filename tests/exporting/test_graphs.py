import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kdbench.errors import ConfigError, KdbenchError
from kdbench.exporting.classifier import Classifier, PixelClassifier
from kdbench.exporting.graphs import load_onnx, write_onnx, write_program
from kdbench.exporting.int8 import quantised
from kdbench.networks.layers import THREE_STAGES
from kdbench.networks.resnet import resnet8
from kdbench.types import Output


class Odd(nn.Module):
    """Logits that are eigenvalues, which ONNX has no operator for."""

    TAPS = THREE_STAGES

    def forward(self, images):
        row = images.flatten(1)[:, :4]
        return Output(torch.linalg.eigvalsh(row[:, :, None] * row[:, None, :]), {})


class Choosy(nn.Module):
    """A network that looks at its numbers before it decides what to do."""

    def forward(self, images):
        return Output(images.flatten(1) if images.sum() > 0 else images.flatten(1) * 2, {})


@pytest.mark.slow
def test_an_operator_that_onnx_lacks_is_one_line():
    with pytest.raises(
        KdbenchError, match=r"ONNX has no operator .*eig.*format=torch_export"
    ) as told:
        write_onnx(Classifier(Odd()), torch.zeros(2, 3, 4, 4))
    assert "\n" not in str(told.value)


def test_a_network_that_is_no_graph_is_one_line():
    with pytest.raises(KdbenchError, match="is no graph for batches of any size") as told:
        write_program(Classifier(Choosy()), torch.zeros(2, 3, 4, 4))
    assert "\n" not in str(told.value)
    with pytest.raises(KdbenchError, match=r"PyTorch cannot quantise this network .*torch_export"):
        quantised(Classifier(Choosy()), torch.zeros(2, 3, 4, 4))


def test_pixels_are_normalised_as_in_training():
    from kdbench.data.augmentation.views import normalise

    network = resnet8(10).eval()
    mean, std = (0.3, 0.5, 0.7), (0.2, 0.25, 0.3)
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = network(normalise(pixels, mean, std)).logits.softmax(1)
        found = PixelClassifier(network, mean, std)(pixels)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def write_some_onnx() -> None:
    write_onnx(Classifier(Odd()), torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("library", "act"),
    [
        ("onnx", write_some_onnx),
        ("onnxscript", write_some_onnx),
        ("onnxruntime", lambda: load_onnx(Path("file.onnx"))),
    ],
)
def test_a_library_of_onnx_that_is_not_installed_is_one_line(monkeypatch, library, act):
    monkeypatch.setitem(sys.modules, library, None)  # an import of it fails
    with pytest.raises(ConfigError) as told:
        act()
    assert str(told.value) == f"format=onnx needs {library}: pip install 'kdbench[onnx]'"


def test_a_pytorch_without_quantisation_is_one_line(monkeypatch):
    """PyTorch has announced that it will remove its own."""
    monkeypatch.setitem(sys.modules, "torch.ao.quantization", None)
    with pytest.raises(ConfigError) as told:
        quantised(Classifier(Odd()), torch.zeros(2, 3, 4, 4))
    line = str(told.value)
    assert line.startswith("format=int8 needs PyTorch's own quantisation (")
    assert line.endswith(f"torch {torch.__version__} has none, choose format=torch_export")
