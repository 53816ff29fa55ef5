"""The division of a batch into micro-batches, and of these among ranks.

Each micro-batch has a forward pass of its own: batch norms normalise by its statistics, and loss
terms that couple images couple those of one micro-batch, as on one of a reference's several GPUs.
So `schedule.micro_batches` is part of the recipe; the number of ranks is not.
"""

from typing import NamedTuple

from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.parallel.ranks import Ranks


class Part(NamedTuple):
    """A micro-batch's place in its batch."""

    number: int  # from 0
    place: slice
    share: float  # of the batch's images
    last: bool  # of its rank's


class Cutting:
    """The micro-batches of a batch; ranks share them as evenly as possible.

    Args:
        count: S, the number of micro-batches.
        batch_size: B, the images of a batch.
        images: N, the images of an epoch.
        ranks: the processes; this one computes the micro-batches `own`.

    Raises:
        ConfigError: there are more ranks than micro-batches, or a micro-batch would be empty.
    """

    def __init__(self, count: int, batch_size: int, images: int, ranks: Ranks) -> None:
        if ranks.count > count:
            raise ConfigError(
                f"{ranks.count} ranks cannot share schedule.micro_batches={count}: set it to "
                f"{ranks.count} or a multiple; it is part of the recipe, for batch norms see one "
                "micro-batch each"
            )
        smallest = min(batch_size, images % batch_size or batch_size)
        if smallest < count:
            raise ConfigError(
                f"schedule.micro_batches={count} leaves some without images, for an epoch's last "
                f"batch has {smallest}: lower it or choose another schedule.batch_size"
            )
        self.count = count
        first, last = (count * (ranks.number + i) // ranks.count for i in (0, 1))
        self.own = range(first, last)

    def cut(self, index: Tensor) -> list[Tensor]:
        """Return this rank's micro-batches of the batch of images at `index` [B]."""
        return list(index.tensor_split(self.count)[self.own.start : self.own.stop])

    def parts(self, size: int) -> list[Part]:
        """Return the places of this rank's micro-batches in a batch of `size` images."""
        least, more = divmod(size, self.count)  # like tensor_split: the first ones have one more

        def start(number: int) -> int:
            return number * least + min(number, more)

        places = {number: slice(start(number), start(number + 1)) for number in self.own}
        last = self.own[-1]
        return [
            Part(n, place, (place.stop - place.start) / size, n == last)
            for n, place in places.items()
        ]
