"""A pseudo-terminal, and what a command has left on its screen."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

# What rich sends to redraw: cursor up, erased lines, the cursor's visibility, colours and weight.
_TOKEN = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Screen(NamedTuple):
    """What stands on a terminal that is as long as need be."""

    lines: list[str]
    cursor_shown: bool
    column: int  # where the cursor stands
    raw: str

    @classmethod
    def after(cls, raw: str) -> "Screen":
        """What these characters and control sequences leave."""
        lines, row, column, shown, at = [""], 0, 0, True, 0
        while at < len(raw):
            found = _TOKEN.match(raw, at)
            assert found is not None, f"no such sequence is known: {raw[at : at + 12]!r}"
            numbers, kind, move, text = found.groups()
            if text:
                line = lines[row].ljust(column)
                lines[row] = line[:column] + text + line[column + len(text) :]
                column += len(text)
            elif move == "\r":
                column = 0
            elif move == "\n":
                row += 1
                lines += [""] * (row == len(lines))
            elif kind == "A":
                row = max(0, row - int(numbers))
            elif kind == "K":
                lines[row] = ""
            elif numbers == "?25":
                shown = kind == "h"
            else:
                assert kind == "m", found[0]
            at = found.end()
        return cls([line.rstrip() for line in lines], shown, column, raw)


class Ended(NamedTuple):
    """A command that has ended."""

    code: int
    screen: Screen


def on_terminal(
    command: Sequence[str],
    environment: Mapping[str, str],
    columns: int = 80,
    heed: Callable[[int, str], None] = lambda pid, so_far: None,
) -> Ended:
    """Run a command on a terminal of its own.

    Args:
        command: its words.
        environment: all its variables.
        columns: the terminal's width.
        heed: is called after every piece of output, with the process and all output so far.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with os.fdopen(ours, "rb", buffering=0) as screen:
        with subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        ) as process:
            os.close(theirs)
            found = b""
            while True:
                try:
                    piece = screen.read(4096)
                except OSError:  # Linux's way to say that nobody writes any more
                    break
                if not piece:
                    break
                found += piece
                heed(process.pid, found.decode(errors="replace"))
        return Ended(process.returncode, Screen.after(found.decode()))
