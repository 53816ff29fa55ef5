"""Random input, drawn the same way each time."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kdbench.errors import KdbenchError


def words(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


Check = Callable[[Any], None]
# What a value may be replaced by: numbers at the edges, text that means something to someone, and
# containers in the wrong place.
WORDS = words(r"""nan -1 1e999 null ../.. ${x} ${ ${oc.env:HOME} ??? done failed kd ce cifar100 <b>
| \ %s {0} 🦆""")
NUMBERS = st.sampled_from([0, -1, 1, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308]) | st.floats()
TEXT = st.text(max_size=8) | st.sampled_from([*WORDS, "", "\x00", "a\nb", "\ud800"])
LEAVES = st.none() | st.booleans() | NUMBERS | TEXT
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def fuzz(check: Check, inputs: st.SearchStrategy[Any], examples: int) -> None:
    """Give `check` this many inputs; anything but a KdbenchError of one line fails."""

    def one(value: Any) -> None:
        said = "a result"
        try:
            check(value)
        except KdbenchError as error:
            said = str(error)
        assert len(said.split("\n")) == 1, said
        assert said

    settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=timedelta(seconds=60),  # a hang
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )(given(inputs)(one))()


def quick_and_long(quick: int, long: int) -> pytest.MarkDecorator:
    """A test's number of inputs, in the quick and in the long profile."""
    return pytest.mark.parametrize("examples", [quick, pytest.param(long, marks=pytest.mark.long)])
