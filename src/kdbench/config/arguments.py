"""Arguments and standard error of the commands that do not use Hydra."""

import argparse
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import NoReturn

from kdbench.errors import ConfigError
from kdbench.schema.secrets import masked
from kdbench.system.escapes import one_line


class Parser(argparse.ArgumentParser):
    """A parser that reports mistakes in one line."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and exit."""
        tell(f"error: {message}: {self.prog} --help lists what there is")
        sys.exit(ConfigError.exit_code)


def tell(text: str) -> None:
    """Print one line on standard error; names and paths in it may come from others."""
    print(f"kdbench: {one_line(text)}", file=sys.stderr)


@contextmanager
def masked_output() -> Iterator[None]:
    """Mask secrets and passwords in Hydra's output of a configuration."""
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            yield
    finally:
        print(masked(text.getvalue()), end="")
