"""Stacked convolutions: every way of computing them against n plain ones in float64."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from kdbench.networks import convolution_choices, convolution_streams
from kdbench.networks.convolution_insides import (
    INSIDES,
    Inside,
    Settings,
    called_forward,
    narrow,
)
from kdbench.networks.convolution_streams import on_streams, side_streams
from kdbench.networks.stacked_convolution import (
    by_images,
    by_weights,
    convolution,
    stacked_convolution,
)
from kdbench.networks.stacked_layers import StackedConv2d, use_stacked_layers

N, BATCH, IN, OUT, SIDE = 2, 8, 16, 32, 8
# The size of the window, the stride, the groups, and whether the networks share their images.
DENSE = [(size, stride, 1, shared) for size, stride, shared in product((3, 1), (1, 2), (0, 1))]
GROUPED = [(3, 1, IN, 0), (1, 1, 4, 1)]


class Case:
    """Images, weights, a gradient of the output and the settings, in channels_last."""

    def __init__(
        self, size: int, stride: int, groups: int, shared: int, dtype: torch.dtype = torch.float64
    ) -> None:
        random = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return (torch.randn(*shape, generator=random) / 4).to(dtype)

        last = {"memory_format": torch.channels_last}
        x = drawn(BATCH, IN if shared else N * IN, SIDE, SIDE).to(**last)
        out, side = OUT if groups == 1 else IN, SIDE // stride
        self.x = x if shared else narrow(x, N)
        self.w = drawn(N * out, IN // groups, size, size).to(**last).unflatten(0, (N, out))
        self.g = narrow(drawn(BATCH, N * out, side, side).to(**last), N)
        self.settings = Settings((stride, stride), (size // 2,) * 2, (1, 1), groups)

    def expected(self) -> list[Tensor]:
        """The output and the gradients by weights and images, one by one in float64."""
        x, w = self.x.double().requires_grad_(), self.w.double().requires_grad_()
        images = [x] * N if x.ndim == 4 else list(x)
        pairs = zip(images, w, strict=True)
        y = torch.stack([torch.conv2d(a, b, None, *self.settings) for a, b in pairs])
        of_weights, of_images = torch.autograd.grad(y, [w, x], self.g.double())
        return [y.detach(), of_weights, of_images]

    def found(self, inside: Inside) -> list[Tensor]:
        given = self.g, self.x, self.w, self.settings
        found = [inside.forward(*given[1:]), inside.by_weights(*given)]
        if self.x.ndim == 5 or inside in INSIDES.values():
            found.append(inside.by_images(*given))
        return found


def assert_close(found: list[Tensor], expected: list[Tensor], close: float) -> None:
    for one, other in zip(found, expected, strict=False):
        assert one.shape == other.shape
        assert (one.double() - other).norm() <= close * other.norm()


@pytest.mark.parametrize("inside", INSIDES)
@pytest.mark.parametrize("shapes", [*DENSE, *GROUPED], ids=str)
def test_a_way_gives_the_numbers_of_plain_convolutions(inside, shapes):
    case = Case(*shapes)
    assert_close(case.found(INSIDES[inside]), case.expected(), 1e-12)


def test_calls_on_streams_are_forked_shared_out_and_joined(monkeypatch):
    notes: list[tuple[str, ...]] = []

    class Stream:
        """A stand-in for a GPU's, which notes what is asked of it."""

        device = torch.device("cpu")

        def __init__(self, device=None, name=None) -> None:
            self.name = name or f"side {sum(note[0] == 'made' for note in notes)}"
            notes.append(("made", self.name))

        def wait_stream(self, other) -> None:
            notes.append(("waits", self.name, other.name))

        def __enter__(self) -> None:
            notes.append(("computes", self.name))

        def __exit__(self, *error) -> None:
            pass

    current = Stream(name="current")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    kept = []
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: kept.append(stream.name))
    monkeypatch.setattr(convolution_streams, "STREAMS", 2)
    side_streams.cache_clear()
    found = on_streams([lambda number=number: torch.tensor(number) for number in range(3)])
    side_streams.cache_clear()
    assert [tensor.item() for tensor in found] == [0, 1, 2]
    one, two = "side 1", "side 2"
    assert notes[3:] == [
        *(("waits", side, "current") for side in (one, two)),
        *(("computes", side) for side in (one, two, one)),
        *(("waits", "current", side) for side in (one, two)),
    ]
    assert kept == ["current"] * 3


NOT_TAKEN = "the Triton kernels do not take this convolution"
CHANGES = {  # of a case that is taken, and what is said
    "float32": (lambda case: setattr(case, "x", case.x.float()), NOT_TAKEN),
    "dilated": (
        lambda case: setattr(case, "settings", case.settings._replace(dilation=(2, 2))),
        NOT_TAKEN,
    ),
    "grouped": (
        lambda case: setattr(case, "settings", case.settings._replace(groups=2)),
        NOT_TAKEN,
    ),
    "odd size": (lambda case: setattr(case, "x", case.x[:, :3, :, :3]), "16 does not divide 72"),
    "layout": (
        lambda case: setattr(case, "x", case.x.contiguous()),
        "the Triton kernels take channels_last alone",
    ),
}

if os.environ.get("TRITON_INTERPRET") == "1":
    from kdbench.networks.triton_convolution import Tile, kernels

    @pytest.mark.parametrize("shapes", DENSE, ids=lambda shapes: "-".join(map(str, shapes)))
    def test_triton_gives_the_numbers_of_plain_convolutions(shapes):
        """In float16, in which the interpreter is right, to the rounding of the results."""
        case = Case(*shapes, dtype=torch.float16)
        assert_close(case.found(kernels(Tile(16, 16, 16, 4, 2))), case.expected(), 5e-4)

else:

    @pytest.mark.long
    @pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with PyTorch for GPUs")
    def test_triton_in_its_interpreter():
        """Run the test above in a process that imports Triton for nothing else."""
        command = [sys.executable, "-m", "pytest", "-p", "no:xdist", __file__]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        found = subprocess.run(
            [*command, "-k", "triton_gives_the_numbers"],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert found.returncode == 0, found.stdout
        assert found.stdout.split()[0] == "." * len(DENSE), found.stdout


@pytest.mark.parametrize("change", CHANGES)
def test_triton_refuses_what_it_would_get_wrong(change):
    """Before a kernel is compiled, so no GPU is needed."""
    triton = pytest.importorskip("kdbench.networks.triton_convolution", exc_type=ImportError)
    act, line = CHANGES[change]
    case = Case(3, 1, 1, 0, torch.float16)
    act(case)
    with pytest.raises(ValueError, match=line):
        triton.kernels(triton.Tile(16, 16, 16, 4, 2)).forward(case.x, case.w, case.settings)


def test_triton_gives_images_that_all_networks_share_no_gradient():
    triton = pytest.importorskip("kdbench.networks.triton_convolution", exc_type=ImportError)
    case = Case(3, 1, 1, 1, torch.float16)
    inside = triton.kernels(triton.Tile(16, 16, 16, 4, 2))
    with pytest.raises(ValueError, match="images that all networks share have no gradient here"):
        inside.by_images(case.g, case.x, case.w, case.settings)


@pytest.mark.parametrize("shapes", [(3, 1, 1, 0), (1, 2, 1, 1)], ids=str)
def test_the_operators_are_what_they_tell_the_compiler(shapes):
    case = Case(*shapes)
    numbers = [number for pair in case.settings[:3] for number in pair]
    given = case.x, case.w, [*numbers, case.settings.groups]
    for operator in (by_images, by_weights):
        torch.library.opcheck(operator, (case.g, *given))
    learning = [tensor.detach().requires_grad_() for tensor in given[:2]]
    checks = "test_schema", "test_autograd_registration", "test_faketensor"
    torch.library.opcheck(stacked_convolution, (*learning, given[2]), test_utils=checks)
    assert_close([stacked_convolution(*given).detach()], case.expected(), 1e-12)
    plain = convolution(given[0] if shapes[3] else given[0][0], given[1][0], given[2])
    assert plain.ndim == 4


def test_layers_of_a_template_keep_their_weights_and_their_numbers():
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=True),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
    )
    images = torch.randn(2, 3, 8, 8)
    expected = layers(images)
    use_stacked_layers(layers)
    assert [type(layer) is StackedConv2d for layer in layers] == [True, False, False, False]
    torch.testing.assert_close(layers(images), expected)


@pytest.fixture
def measured(monkeypatch, tmp_path) -> list[str]:
    """Measurements on the processor, with a clock that is given; what is timed."""
    timed: list[str] = []

    def seconds_of(run, device):
        timed.append(run.func.__name__)
        return 1.0 if run.func is called_forward else 2.0

    monkeypatch.setattr(convolution_choices, "TURNS", 1)
    monkeypatch.setattr(convolution_choices, "measures", lambda device: True)
    monkeypatch.setattr(convolution_choices, "seconds_of", seconds_of)
    monkeypatch.setattr(convolution_choices, "kept", lambda: tmp_path / "choices.json")
    convolution_choices.choices.cache_clear()
    yield timed
    convolution_choices.choices.cache_clear()


def test_the_fastest_way_is_measured_once_for_each_shape_and_kept(measured, tmp_path):
    case = Case(3, 1, 1, 0)
    given = (case.x, case.w), case.settings
    first = convolution_choices.compute("forward", *given)
    assert_close([first], case.expected(), 1e-12)
    assert measured == ["grouped_forward", "called_forward"]
    convolution_choices.choices.cache_clear()  # as another process
    convolution_choices.compute("forward", *given)
    assert len(measured) == 2, "known from the file"
    convolution_choices.compute("forward", (case.x[:, :4], case.w), case.settings)
    assert len(measured) == 4, "another shape"
    (choices,) = json.loads((tmp_path / "choices.json").read_text()).values()
    assert set(choices.values()) == {"calls"}


@pytest.mark.parametrize("content", ["", "[]", '{"cpu": 3}', "\x00"])
def test_a_damaged_file_of_choices_is_measured_anew(measured, tmp_path, content):
    (tmp_path / "choices.json").write_text(content)
    case = Case(3, 1, 1, 0)
    convolution_choices.compute("forward", (case.x, case.w), case.settings)
    assert len(measured) == 2


def test_a_gpu_without_triton_has_the_other_ways(monkeypatch):
    monkeypatch.setitem(sys.modules, "kdbench.networks.triton_convolution", None)
    ways = convolution_choices.ways.__wrapped__  # the cache is for the other tests
    assert ways("cuda") == {**INSIDES, **convolution_streams.STREAM_INSIDES}
    assert ways("cpu") == INSIDES
