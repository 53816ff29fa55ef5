"""Reading of NumPy's archives (.npz) from a folder to which others may have written.

`np.load` allocates what a header promises and unpacks compressed members, so that a file of some
bytes can take any amount of memory. Here an array takes no more memory than its file.
"""

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import numpy as np

from kdbench.system.files import open_regular

LARGEST = 2**30  # bytes of an archive


def read_arrays(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Read arrays from an archive of `np.savez`, uncompressed and without objects.

    Raises:
        ValueError: it is no regular file or too large, an array is compressed or not as large as
            its file.
        KeyError: an array is missing.
        Exception: a damaged archive makes zipfile raise many types.
    """
    arrays = {}
    with open_regular(path) as file, ZipFile(file) as archive:
        total = os.fstat(file.fileno()).st_size
        for key in keys:
            member = archive.getinfo(f"{key}.npy")
            if member.compress_type != ZIP_STORED or not member.file_size <= total <= LARGEST:
                raise ValueError(f"{path} is compressed, or too large")
            arrays[key] = read_array(archive.read(member))
    return arrays


def read_array(content: bytes) -> np.ndarray:
    """Read the array of a .npy file.

    Raises:
        ValueError: it holds objects, or its size differs from its header's.
    """
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array of another version")
    shape, _, kind = np.lib.format.read_array_header_1_0(stream)
    start = stream.tell()
    if kind.hasobject or math.prod(shape) * kind.itemsize != len(content) - start:
        raise ValueError("an array of another size than its file")
    return np.frombuffer(content, kind, offset=start).reshape(shape)
