"""What is passed over among images: files that systems leave behind, and files that are no images.

They are counted, and told in one line a data set.
"""

from kdbench.system.console import Console

NAMED = 3  # of each kind, in the line
# Of Windows, macOS, Synology and QNAP; in lower case. What begins with a dot is hidden everywhere.
LEFT_BEHIND = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini"),
        *("$recycle.bin", "system volume information", "__macosx", "icon\r", "__pycache__"),
        *("network trash folder", "temporary items", "lost+found"),
        *("@eadir", "@recycle", "@recently-snapshot", "@__thumb", "@tmp", "#recycle", "#snapshot"),
    }
)


def left_behind(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or a system's own, and no part of a set."""
    return name.startswith((".", "~$")) or name.lower() in LEFT_BEHIND


class PassedOver:
    """Counts what is passed over; the first names of each kind are kept."""

    def __init__(self, known: str | None = None) -> None:
        self.known = known  # how files end that belong to the set beside its images
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def left_behind(self, name: str) -> None:
        """One of the system's, a folder with all that is in it."""
        self._count("hidden or of the system", name)

    def no_image(self, name: str) -> None:
        """One whose name does not end as an image's does."""
        if self.known is None or not name.endswith(self.known):
            self._count("not called as an image", name)

    def outside(self, name: str) -> None:
        """An image beside the folders of the classes."""
        self._count("images outside the classes", name)

    def _count(self, kind: str, name: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        names = self._names.setdefault(kind, [])
        if len(names) < NAMED:
            names.append(printable(name))

    def line(self) -> str | None:
        """What was passed over; None where nothing was."""
        if not self._counts:
            return None
        total = sum(self._counts.values())
        return f"passed over {total:,}: " + "; ".join(
            f"{kind}: {count:,} ({listed(self._names[kind], count)})"
            for kind, count in self._counts.items()
        )

    def say(self, where: object) -> None:
        """One line on the terminal, where anything was passed over."""
        if line := self.line():
            Console().message(f"{printable(str(where))}: {line}")


def listed(names: list[str], count: int) -> str:
    """The first of `count` names, in one line."""
    return ", ".join(names) + (", ..." if count > len(names) else "")


def printable(name: str) -> str:
    """A file's name as any terminal can print it: bytes that are no UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
