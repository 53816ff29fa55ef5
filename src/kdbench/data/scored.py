"""A check of the test images before anything is trained.

They are first decoded after an epoch, hours later, and an unreadable one ends the run. To decode
all of them at every start would take as long as to score them. So the header and the end mark of
each JPEG are read, which shows whether a file is empty, cut off or no JPEG; a file that does not
begin and end as a JPEG is decoded. Damage in the middle of a JPEG mostly decodes to some image,
and is noticed neither here nor later.
"""

import io
from collections.abc import Callable
from functools import partial

from kdbench.data.decoding.decode import identified, naming
from kdbench.data.streaming.image_files import begun
from kdbench.data.streaming.sources import Source
from kdbench.errors import KdbenchError

START, END = b"\xff\xd8\xff", b"\xff\xd9"  # of a whole JPEG
HEAD, TAIL = 2**15, 2**6  # bytes read at each image's beginning and end
NAMED = 3  # images that a line names at most


def check_scored(
    source: Source,
    decode: Callable[[int], object],
    check: Callable[[int, int, int], None],
) -> None:
    """Refuse unreadable test images, before the first step.

    Args:
        source: the images.
        decode: decodes the image at a row as for scoring.
        check: raises a ValueError where that must fail, given row, width and height.

    Raises:
        KdbenchError: an image cannot be read; the first is named, and the others are counted.
    """

    def look(row: int) -> KdbenchError | None:
        try:
            with naming(source.where(row)):
                head, tail = source.ends(row, HEAD, TAIL)
                if not (is_whole(head, tail) and has_header(head, partial(check, row))):
                    decode(row)
        except KdbenchError as error:
            return error
        return None

    found = [(row, future.result()) for row, future in enumerate(begun(look, len(source.names)))]
    broken = [(row, error) for row, error in found if error is not None]
    if broken:
        also = ", ".join(source.where(row) for row, _ in broken[1:NAMED])
        more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        rest = f" ({len(broken)} images to score on cannot be read; also {also}{more})"
        raise KdbenchError(f"{broken[0][1]}{rest if also else ''}")


def is_whole(head: bytes, tail: bytes) -> bool:
    """Return whether a file begins and ends as a JPEG does; zeros may follow."""
    return head.startswith(START) and tail.rstrip(b"\0").endswith(END)


def has_header(head: bytes, check: Callable[[int, int], None] = lambda width, height: None) -> bool:
    """Return whether a JPEG's first bytes hold its whole header, with a size within bounds."""
    try:
        with identified(io.BytesIO(head), ("JPEG",)) as image:
            check(*image.size)
    except Exception:  # decoding the file will report what is wrong
        return False
    return True
