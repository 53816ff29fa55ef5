import pytest
import torch

from kdbench.errors import KdbenchError
from kdbench.exporting.comparison import check_equal, compare

IMAGES = torch.randn(256, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(256) % 48


def network(images):
    return images.flatten(1)


def test_what_is_the_same_is_the_same():
    found, largest = compare(network, network, IMAGES, LABELS)
    assert (found.n, found.max_difference) == (256, 0)
    assert largest == IMAGES.abs().max()
    expected = 100 * (IMAGES.flatten(1).argmax(1) == LABELS).double().mean().item()
    assert found.top1 == found.top1_exported == expected
    check_equal(found, largest)


def test_a_difference_beyond_rounding_is_an_error():
    largest = IMAGES.abs().max().item()
    for size, wrong in ((3e-5, False), (3e-4, True)):
        found, scale = compare(network, lambda x, s=size: network(x) + s * largest, IMAGES, LABELS)
        if wrong:
            with pytest.raises(KdbenchError, match="answers otherwise"):
                check_equal(found, scale)
        else:
            check_equal(found, scale)


def test_no_numbers_and_other_shapes_are_errors():
    found = compare(network, lambda x: network(x) * float("nan"), IMAGES, LABELS)
    with pytest.raises(KdbenchError, match="differ by nan"):
        check_equal(*found)
    with pytest.raises(KdbenchError, match=r"gives .256, 1., the network .256, 48."):
        compare(network, lambda x: network(x)[:, :1], IMAGES, LABELS)


def test_several_sizes_of_batches_are_run():
    sizes = []

    def seen(images):
        sizes.append(len(images))
        return network(images)

    compare(network, seen, IMAGES, LABELS)
    assert sizes == [1, 100, 155]
