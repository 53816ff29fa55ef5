import math

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods.wasserstein import cell_edges, moment_distance
from kdbench.methods.wkd_f import WKDF
from kdbench.methods.wkd_l import WKDL
from kdbench.methods.wkd_lf import WKDLF
from kdbench.types import Affine, Batch, NetworkProbe, Output, Probe
from support.logit_batches import LABELS, B, K, logits


def feature(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def probe(side: int = 8, student_side: int = 8) -> Probe:
    teacher = NetworkProbe(
        {"map": torch.Size((5, side, side))},
        Affine(feature(7, K, 5), feature(8, K)),
        class_features=lambda _: feature(9, K, 4, 5),
    )
    student = NetworkProbe({"map": torch.Size((3, student_side, student_side))})
    return Probe(student, (teacher,), K, LABELS)


def test_matches_the_formula_by_hand():
    """Cells of a 5 x 5 map in a grid of 2: rows 0 to 2 and 2 to 4."""
    student, teacher = feature(0, 2, 3, 5, 5), feature(1, 2, 3, 5, 5)
    expected = []
    for own, theirs in zip(student, teacher, strict=True):
        loss = 0.0
        for rows in (slice(0, 3), slice(2, 5)):
            for columns in (slice(0, 3), slice(2, 5)):
                for channel in range(3):
                    cells = [m[channel, rows, columns].flatten().tolist() for m in (own, theirs)]
                    means = [sum(c) / 9 for c in cells]
                    deviations = [
                        math.sqrt(sum((x - m) ** 2 for x in c) / 8 + 1e-5)
                        for c, m in zip(cells, means, strict=True)
                    ]
                    loss += 3 * (means[0] - means[1]) ** 2 + (deviations[0] - deviations[1]) ** 2
        expected.append(loss / 4)
    assert moment_distance(student, teacher, 2, 3.0, 1e-5).tolist() == pytest.approx(expected)


def test_cells_cover_the_map_and_overlap_where_they_must():
    assert cell_edges(8, 4) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert cell_edges(7, 4) == [(0, 2), (1, 4), (3, 6), (5, 7)]


@pytest.mark.parametrize("projector", ["conv1x1", "bottleneck"])
def test_together_they_are_the_two_methods(projector):
    features, transport = WKDF(projector=projector), WKDL()
    both = WKDLF(projector=projector, mean_weight=4.0, transport_weight=800.0)
    for method in (features, transport, both):
        torch.manual_seed(0)
        method.setup(probe())
        method.double()
    both.project.load_state_dict(features.project.state_dict())
    outputs = [
        Output(logits(seed), {"map": feature(seed, B, width, 8, 8)})
        for seed, width in ((0, 3), (1, 5))
    ]
    for epoch, factor in ((150.0, 1.0), (195.0, 0.5), (240.0, 0.0)):
        batch = Batch(torch.empty(0), LABELS, torch.arange(B), torch.tensor(epoch))
        terms = both(batch, outputs[0], (outputs[1],))
        apart = [method(batch, outputs[0], (outputs[1],)) for method in (features, transport)]
        for name, term in {**apart[0], **apart[1]}.items():
            torch.testing.assert_close(terms[name], term, rtol=1e-5, atol=1e-6)
        if factor == 1.0:
            whole = terms
        torch.testing.assert_close(
            terms["feature"], factor * whole["feature"], rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(terms["target"], whole["target"])


@pytest.mark.parametrize("method", [WKDF, WKDLF])
def test_refuses_settings_without_meaning(method):
    with pytest.raises(ConfigError, match=r"method.decay_start=240 must be below 240"):
        method(decay_start=240)
    with pytest.raises(ConfigError, match=r"method.grid=4 on a 4x4 map has cells of one pixel"):
        method(grid=4).setup(probe(side=4, student_side=4))
    with pytest.raises(ConfigError, match=r"bottleneck takes maps of one size, not 8x8 and 4x4"):
        method(projector="bottleneck").setup(probe(side=4))
    if method is WKDLF:
        with pytest.raises(ConfigError, match=r"method.regularization must be 0.0125 or more"):
            method(regularization=0.001)
