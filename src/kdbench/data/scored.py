"""A look at the images to score on before anything is trained.

They are first read whole after an epoch, hours later, and one that cannot be read ends the run. To
decode all of them at every start would take as long as to score them. So of each JPEG the header
and the end mark are read, which tells a file that is empty, cut off or something else; what does
not begin and end as a JPEG does is decoded. Damage in the middle of a JPEG mostly decodes to
something, and nothing notices it, here or later.
"""

import io

from kdbench.data.decoding.decode import check_scaled, identified, naming, squared
from kdbench.data.streaming.image_files import ImageFiles, begun
from kdbench.errors import KdbenchError

START, END = b"\xff\xd8\xff", b"\xff\xd9"  # of a whole JPEG
HEAD, TAIL = 2**15, 2**6  # bytes that are read of each image
NAMED = 3  # images that a line names at most


def check_scored(files: ImageFiles) -> None:
    """Notice images to score on that cannot be read, before the first step.

    Raises:
        KdbenchError: names the first of them, and how many more there are.
    """
    source = files.source

    def look(row: int) -> KdbenchError | None:
        try:
            with naming(source.where(row)):
                ends = source.ends(row, HEAD, TAIL)
                if not (is_whole(*ends) and has_header(ends[0], files.resize)):
                    squared(source.read(row), files.resize, files.image_size)
        except KdbenchError as error:
            return error
        return None

    found = [(row, future.result()) for row, future in enumerate(begun(look, len(files)))]
    broken = [(row, error) for row, error in found if error is not None]
    if broken:
        more = "".join(f", {source.where(row)}" for row, _ in broken[1:NAMED])
        rest = f" ({len(broken)} images to score on cannot be read; also{more[1:]}"
        rest += f" and {len(broken) - NAMED} more)" if len(broken) > NAMED else ")"
        raise KdbenchError(f"{broken[0][1]}{rest if more else ''}")


def is_whole(head: bytes, tail: bytes) -> bool:
    """Whether a file begins and ends as a JPEG does; zeros may follow."""
    return head.startswith(START) and tail.rstrip(b"\0").endswith(END)


def has_header(head: bytes, shorter: int | None = None) -> bool:
    """Whether the first bytes of a JPEG hold all of its header, and its size is within bounds."""
    try:
        with identified(io.BytesIO(head), ("JPEG",)) as image:
            if shorter is not None:
                check_scaled(image, shorter)
    except Exception:  # whoever decodes the file says what is wrong with it
        return False
    return True
