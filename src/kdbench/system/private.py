"""Folders and marks that nobody but this user can have made."""

import hashlib
import hmac
import os
import secrets
import stat
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.system.files import open_own, own_folder

KEY_BYTES = 32


def private_folder(parent: Path, name: str) -> Path:
    """A folder of this user's own, whose content is believed.

    Where several people share `parent`, the first has the plain name, the others have one with
    their number behind it.

    Raises:
        KdbenchError: neither is to be had.
    """
    try:
        return own_folder(parent / name, 0o700)
    except KdbenchError:
        return own_folder(parent / f"{name}-{os.geteuid()}", 0o700)


@cache
def user_folder(variable: str, usual: str) -> Path:
    """A folder of kdbench's in this user's home, or one that lasts as long as the process.

    Args:
        variable: names where such folders lie, as XDG_CACHE_HOME does.
        usual: where they lie without it, below the home.
    """
    with suppress(OSError, RuntimeError, KdbenchError):
        place = Path(os.environ.get(variable) or Path.home() / usual)
        place.mkdir(parents=True, exist_ok=True)
        return own_folder(place / "kdbench", 0o700)
    return Path(tempfile.mkdtemp(prefix="kdbench-"))


def keep_compiled_code() -> None:
    """Let PyTorch keep the code that it compiles, in pickles, where others cannot put theirs.

    It would take a folder of /tmp. TORCHINDUCTOR_CACHE_DIR names another place.
    """
    place = user_folder("XDG_CACHE_HOME", ".cache") / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(own_folder(place, 0o700)))


@cache
def key() -> bytes:
    """A key of this user's; where none can be kept, one for this process."""
    path = user_folder("XDG_STATE_HOME", ".local/state") / "key"
    with suppress(OSError):
        if not path.exists():
            fresh = path.with_name(f"key.{secrets.token_hex(6)}")
            with os.fdopen(open_own(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
                f.write(secrets.token_bytes(KEY_BYTES))
            with suppress(FileExistsError):  # another process was quicker
                os.link(fresh, path)
            fresh.unlink()
        with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
            facts, found = os.fstat(file.fileno()), file.read(KEY_BYTES + 1)
        others = stat.S_IRWXG | stat.S_IRWXO
        if facts.st_uid == os.geteuid() and not facts.st_mode & others and len(found) == KEY_BYTES:
            return found
    return secrets.token_bytes(KEY_BYTES)


def seal(text: str) -> str:
    """A mark that shows a text to be this user's."""
    return hmac.new(key(), text.encode(), hashlib.sha256).hexdigest()


def is_sealed(text: str, mark: object) -> bool:
    """Whether a mark is that of the text."""
    return isinstance(mark, str) and hmac.compare_digest(seal(text).encode(), mark.encode())
