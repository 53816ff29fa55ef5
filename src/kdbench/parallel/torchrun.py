"""A process's rank as torchrun sets it in the environment; needs no torch."""

import os
from dataclasses import dataclass

from kdbench.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """A process among those of the same training."""

    number: int = 0  # its rank
    count: int = 1
    local: int = 0  # the number among those of this machine


def place() -> Place:
    """Read the place from RANK, WORLD_SIZE and LOCAL_RANK; without torchrun the process is alone.

    Raises:
        ConfigError: a variable is not a valid number.
    """
    found = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not found[0] or not found[1]:
        return Place()
    try:
        number, count, local = int(found[0]), int(found[1]), int(found[2] or found[0])
    except ValueError:
        number = count = local = -1
    if not 0 <= number < count or local < 0:
        raise ConfigError(
            "RANK={}, WORLD_SIZE={} and LOCAL_RANK={} of the environment make no sense: start with "
            "torchrun, or unset them".format(*found)
        )
    return Place(number, count, local) if count > 1 else Place()


def speaks(line: str) -> bool:
    """Return whether this process prints a line: the first prints all, the others their own."""
    try:
        return place().number == 0 or line.startswith("rank ")
    except ConfigError:
        return True
