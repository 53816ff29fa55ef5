"""What attacks share: commands under a watch and a clock."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def soon() -> Iterator[None]:
    """Fail where something waits for a pipe."""

    def late(number: int, frame: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 20)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


SMALL = ["dataset=synthetic", "dataset.num_train=40", "dataset.num_test=20", "runtime=cpu"]


def placed(config: dict, place: str, node: object) -> dict:
    """The configuration with a node at a dotted place."""
    key, _, rest = place.partition(".")
    if isinstance(config, list):
        return [node]
    inside = config.get(key) or {}
    return {**config, key: placed(inside, rest, node) if rest else node}
