"""Files that are skipped among images: hidden and system files, and files that are no images.

They are counted, and reported in one line per data set.
"""

from kdbench.system.console import Console

NAMED = 3  # of each kind, in the line
# Windows, macOS, Synology and QNAP write these; in lower case. Names with a dot first are hidden.
LEFT_BEHIND = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini"),
        *("$recycle.bin", "system volume information", "__macosx", "icon\r", "__pycache__"),
        *("network trash folder", "temporary items", "lost+found"),
        *("@eadir", "@recycle", "@recently-snapshot", "@__thumb", "@tmp", "#recycle", "#snapshot"),
    }
)


def left_behind(name: str) -> bool:
    """Return whether a file or folder of this name is hidden or a system's own."""
    return name.startswith((".", "~$")) or name.lower() in LEFT_BEHIND


class PassedOver:
    """A counter of skipped files, with the first names of each kind."""

    def __init__(self, known: str | None = None) -> None:
        self.known = known  # endings of the set's other files
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def left_behind(self, name: str) -> None:
        """Count a hidden or system file, or such a folder with its content."""
        self._count("hidden or of the system", name)

    def no_image(self, name: str) -> None:
        """Count a file without an image's ending."""
        if self.known is None or not name.endswith(self.known):
            self._count("not called as an image", name)

    def outside(self, name: str) -> None:
        """Count an image outside the class folders."""
        self._count("images outside the classes", name)

    def _count(self, kind: str, name: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        names = self._names.setdefault(kind, [])
        if len(names) < NAMED:
            names.append(printable(name))

    def line(self) -> str | None:
        """Return a line on the skipped files; None where there are none."""
        if not self._counts:
            return None
        total = sum(self._counts.values())
        return f"passed over {total:,}: " + "; ".join(
            f"{kind}: {count:,} ({listed(self._names[kind], count)})"
            for kind, count in self._counts.items()
        )

    def say(self, where: object) -> None:
        """Print a line on the skipped files, if any."""
        if line := self.line():
            Console().message(f"{printable(str(where))}: {line}")


def listed(names: list[str], count: int) -> str:
    """Return the first of `count` names, in one line."""
    return ", ".join(names) + (", ..." if count > len(names) else "")


def printable(name: str) -> str:
    """Return a file's name as any terminal can print it, with invalid UTF-8 escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
