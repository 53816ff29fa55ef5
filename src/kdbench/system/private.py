"""Folders and seals that only this user can have made."""

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
    """Make or find a folder of this user's own, whose content can be trusted.

    Where several users share `parent`, the first one's folder has the plain name, and those of
    others have their user number appended.

    Raises:
        KdbenchError: neither folder is available.
    """
    try:
        return own_folder(parent / name, 0o700)
    except KdbenchError:
        return own_folder(parent / f"{name}-{os.geteuid()}", 0o700)


@cache
def user_folder(variable: str, usual: str) -> Path:
    """Return kdbench's folder in this user's home, or one that lasts as long as the process.

    Args:
        variable: the environment variable that names the parent folder, such as XDG_CACHE_HOME.
        usual: the parent folder without it, below the home.
    """
    with suppress(OSError, RuntimeError, KdbenchError):
        place = Path(os.environ.get(variable) or Path.home() / usual)
        place.mkdir(parents=True, exist_ok=True)
        return own_folder(place / "kdbench", 0o700)
    return Path(tempfile.mkdtemp(prefix="kdbench-"))


def keep_compiled_code() -> None:
    """Let PyTorch keep its compiled code, which it unpickles, where other users cannot write.

    Its default is a folder in /tmp. TORCHINDUCTOR_CACHE_DIR names another place; PyTorch writes its
    default there by itself, as soon as torchvision is imported.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # takes a second

    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if named is None or named == os.path.abspath(default_cache_dir()):
        place = user_folder("XDG_CACHE_HOME", ".cache") / "inductor"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(own_folder(place, 0o700))


@cache
def key() -> bytes:
    """Return this user's key; where none can be kept, one for this process."""
    path = user_folder("XDG_STATE_HOME", ".local/state") / "key"
    with suppress(OSError):
        if not path.exists():
            fresh = path.with_name(f"key.{secrets.token_hex(6)}")
            with os.fdopen(open_own(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
                f.write(secrets.token_bytes(KEY_BYTES))
            with suppress(FileExistsError):  # another process was faster
                os.link(fresh, path)
            fresh.unlink()
        with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
            facts, found = os.fstat(file.fileno()), file.read(KEY_BYTES + 1)
        others = stat.S_IRWXG | stat.S_IRWXO
        if facts.st_uid == os.geteuid() and not facts.st_mode & others and len(found) == KEY_BYTES:
            return found
    return secrets.token_bytes(KEY_BYTES)


def seal(text: str) -> str:
    """Return a seal that shows that this user wrote the text."""
    return hmac.new(key(), text.encode(), hashlib.sha256).hexdigest()


def is_sealed(text: str, mark: object) -> bool:
    """Return whether a mark is the seal of the text."""
    return isinstance(mark, str) and hmac.compare_digest(seal(text).encode(), mark.encode())
