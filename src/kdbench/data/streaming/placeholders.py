"""Placeholders for training images that cannot be read and may be replaced."""

import threading

import numpy as np
from PIL import Image
from torch import Tensor

from kdbench.data.decoding.decode import reason_of
from kdbench.data.passed_over import printable
from kdbench.data.streaming.sources import Source
from kdbench.errors import KdbenchError
from kdbench.system.console import Console

NAMED = 5  # unreadable images that the console names; the record counts all


class Placeholders:
    """Training images in which the next readable image of the class replaces an unreadable one.

    The placeholder is shown in the same view. The search goes through the class's rows in order and
    wraps around, so the placeholder is the same in every epoch, in every run and with any number of
    threads, and the label stays right.
    """

    def __init__(self, source: Source, labels: Tensor) -> None:
        self.source, self.labels = source, labels
        self.rows = np.argsort(labels.numpy(), kind="stable")  # class by class
        self.place = np.empty_like(self.rows)
        self.place[self.rows] = np.arange(len(self.rows))
        in_order = labels.numpy()[self.rows]
        self.start = np.searchsorted(in_order, labels.numpy(), side="left")
        self.stop = np.searchsorted(in_order, labels.numpy(), side="right")
        self.broken: dict[int, str] = {}  # rows found so far, and what is wrong with them
        self._lock = threading.Lock()

    def read(self, row: int) -> Image.Image:
        """Return the image at `row`, or its placeholder.

        Raises:
            KdbenchError: no image of its class can be read.
            OSError: the file cannot be reached, which says nothing about the image.
        """
        start, count = int(self.start[row]), int(self.stop[row] - self.start[row])
        first = int(self.place[row]) - start
        for step in range(count):
            candidate = int(self.rows[start + (first + step) % count])
            if candidate in self.broken:
                continue
            try:
                return self.source.read(candidate)
            except Exception as error:
                if not of_the_image(error):
                    raise
                self._note(candidate, error)
        raise KdbenchError(
            f"no image of the class of {self.source.where(row)} can be read: restore them"
        )

    def _note(self, row: int, error: Exception) -> None:
        with self._lock:
            if row in self.broken:
                return
            self.broken[row] = reason_of(error)
            count = len(self.broken)
        if count <= NAMED:
            more = "; further ones are only counted" if count == NAMED else ""
            Console().message(
                f"{printable(self.source.where(row))} cannot be read ({self.broken[row]}): the "
                f"next image of its class stands in for it{more}"
            )


def of_the_image(error: Exception) -> bool:
    """Return whether the content is unreadable, rather than a disk, a network or memory failing."""
    outside = isinstance(error, OSError) and error.errno is not None
    return not (outside or isinstance(error, KdbenchError | MemoryError))
