"""Reading of weight files, recognised by their content and never by their ending.

Nothing in a file can run code: a file with more than plain data is refused, and the rest is named.
"""

import os
import pickle
import pickletools
import re
import warnings
from argparse import Namespace
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import numpy as np
import torch
from safetensors.torch import load_file

from kdbench.errors import KdbenchError, first_line
from kdbench.system.files import open_regular, same_file

ZIP_START = b"PK\3\4"  # the beginning of PyTorch's archives
# mdistiller's and RepDistiller's files hold these besides tensors: NumPy numbers (the accuracy) and
# the command line. None of them runs code when it is loaded.
_numpy_scalar = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    Namespace,
    np.dtype,
    np.ndarray,
    np.zeros(1).__reduce__()[0],
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int64")),
    _numpy_scalar,
    (_numpy_scalar, "numpy.core.multiarray.scalar"),  # its name in files of NumPy 1
]
# Plain data consists of these names; any other name in a pickle is reported.
_PLAIN = re.compile(
    r"argparse\.Namespace|collections\.(OrderedDict|Counter)|_codecs\.encode|numpy\..*|torch\.\w+"
    r"|torch\.(_utils|storage|_tensor|serialization|nn\.parameter)\..*"
)
_HEAD = 512  # bytes by which a file is recognised
_OPCODES = 10**6  # of a pickle that are searched for names
_PICKLES = 4  # in files of old PyTorch the fourth is the object
_FETCH = "fetch it again"
_SAVE = "save a PyTorch state_dict()"
# Beginnings of files that are no weights, the kinds of files, and remedies.
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer and not the file", "run git lfs pull"),
    (b"/annex/objects/", "is a git-annex pointer and not the file", "run git annex get"),
    (b"\x1f\x8b", "is compressed (gzip)", "unpack it first"),
    (b"BZh", "is compressed (bzip2)", "unpack it first"),
    (b"\xfd7zXZ\0", "is compressed (xz)", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd)", "unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive", "unpack it first"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes them", _SAVE),
    (b"\x93NUMPY", "is a NumPy array", _SAVE),
)
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<body", b"<!--")


def read_content(path: Path) -> Any:
    """Return the plain data in a weight file: tensors by name, or containers that hold them.

    Raises:
        KdbenchError: it is unreadable, truncated, no weight file, or holds more than plain data.
    """
    try:
        file = open_regular(path)  # one descriptor, from the checks to the use
    except (OSError, ValueError) as error:
        raise KdbenchError(f"{path} cannot be read ({first_line(error)})") from None
    with file:
        return _content(path, file)


def _content(path: Path, file: BinaryIO) -> Any:
    refuse_others(path, file)
    try:
        return load_file(same_file(file)) if is_safetensors(file) else _unpickle(path, file)
    except KdbenchError:
        raise
    except pickle.UnpicklingError:
        raise KdbenchError(f"{path} {what_it_holds(file)}") from None
    except Exception as error:  # a broken file makes the unpickler raise nearly anything
        said = first_line(error)
        if "weights_only" in said:  # PyTorch's advice is to let the file run code
            said = type(error).__name__
        raise KdbenchError(f"{path} cannot be read ({said}): is it truncated?") from None


def refuse_others(path: Path, file: BinaryIO) -> None:
    """Refuse what is no weight file, by how it begins.

    Args:
        path: what the file is called.
        file: the file, open.

    Raises:
        KdbenchError: the message says what the file is, and what helps.
    """
    head = _head(file)
    if not head:
        raise KdbenchError(f"{path} is empty: was it truncated? {_FETCH}")
    for beginning, kind, help_ in _BEGINNINGS:
        if head.startswith(beginning):
            raise KdbenchError(f"{path} {kind}: {help_}")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES):
        raise KdbenchError(f"{path} is a web page: {_FETCH}")
    if head[257:262] == b"ustar":
        raise KdbenchError(f"{path} is a tar archive: unpack it first")
    if is_zipfile(file):
        try:
            _check_zip(path, file)
        except (BadZipFile, NotImplementedError, ValueError) as error:
            raise KdbenchError(
                f"{path} cannot be read ({first_line(error)}): is it truncated?"
            ) from None


def _check_zip(path: Path, file: BinaryIO) -> None:
    """Refuse a zip archive that is not one of torch.save.

    Raises:
        KdbenchError: the message says what the archive is.
    """
    with ZipFile(file) as archive:
        members = archive.infolist()
    names = {member.filename.rpartition("/")[2] for member in members}
    if any(name.endswith(".npy") for name in names):
        raise KdbenchError(f"{path} is a NumPy archive: {_SAVE}")
    if "data.pkl" not in names:
        raise KdbenchError(f"{path} is a zip archive: unpack it first")
    if "constants.pkl" in names:
        raise KdbenchError(f"{path} is a TorchScript module: save its state_dict()")
    if any(member.compress_type != ZIP_STORED for member in members):
        raise KdbenchError(f"{path} is refused: it is compressed, as PyTorch writes none")


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(_HEAD)


def is_safetensors(file: BinaryIO) -> bool:
    """Return whether a file begins as safetensors do: with a length, and JSON of that length."""
    head = _head(file)[:9]
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def _unpickle(path: Path, file: BinaryIO) -> Any:
    # PyTorch is given the file and no path, for it goes by a path's ending.
    file.seek(0)
    with warnings.catch_warnings():
        if holds_more(file):
            raise KdbenchError(f"{path} is refused: it is compressed, as PyTorch writes none")
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(file, map_location="cpu", weights_only=True)


def holds_more(file: BinaryIO) -> bool:
    """Return whether a file is an archive that would fill more memory than its own bytes.

    PyTorch's own reader is used, since Python's may find another archive in the file, or none.
    """
    if file.read(len(ZIP_START)) != ZIP_START:
        file.seek(0)
        return False
    file.seek(0)
    reader = torch._C.PyTorchFileReader(file)
    sizes = [reader.get_record_size(name) for name in reader.get_all_records()]
    return sum(sizes) > file.seek(0, os.SEEK_END) + file.seek(0)


def what_it_holds(file: BinaryIO) -> str:
    """The end of the line for a file that the unpickler refuses."""
    try:
        named = next((name for name in _names(file) if not _PLAIN.fullmatch(name)), None)
    except Exception:  # of a damaged file
        named = None
    if named is not None:
        shown = re.sub(r"^torch\.nn\.modules\.(\w+\.)*", "torch.nn.", named)
        return (
            f"is refused, for more than plain data could run code; it holds a {shown}: save its "
            "state_dict() alone"
        )
    if is_text(file):
        return f"is a text file and no checkpoint: {_FETCH}"
    return "is no checkpoint, or a damaged one: is it truncated? Give a file of torch.save"


def is_text(file: BinaryIO) -> bool:
    """Return whether a file begins with text."""
    text = _head(file).decode(errors="replace")
    return all(letter.isprintable() or letter.isspace() for letter in text.rstrip("\ufffd"))


def _names(file: BinaryIO) -> Iterator[str]:
    """The classes and functions that a file's pickles name, in order; nothing is loaded."""
    if is_zipfile(file):
        with ZipFile(file) as archive:
            inner = next(n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl")
            with archive.open(inner) as member:
                yield from _names_in(member)
        return
    file.seek(0)
    for _ in range(_PICKLES):
        yield from _names_in(file)


def _names_in(file: IO[bytes]) -> Iterator[str]:
    texts: list[str] = []  # the unpickler's stack
    memo: dict[object, object] = {}
    last: object = None
    for opcode, argument, _ in islice(pickletools.genops(file), _OPCODES):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = last
        elif "PUT" in opcode.name:
            memo[argument] = last
        elif "GET" in opcode.name:
            argument = memo.get(argument)
        if "PUT" not in opcode.name and opcode.name != "MEMOIZE":
            last = argument
        if isinstance(argument, str) and opcode.name not in ("GLOBAL", "INST"):
            texts.append(argument)
