"""The command lines of the commands that are not Hydra's, and what they say on standard error."""

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
    """Arguments whose mistakes are one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and leave."""
        tell(f"error: {message}: {self.prog} --help lists what there is")
        sys.exit(ConfigError.exit_code)


def tell(text: str) -> None:
    """One line on standard error, of which names and paths may be anybody's."""
    print(f"kdbench: {one_line(text)}", file=sys.stderr)


@contextmanager
def masked_output() -> Iterator[None]:
    """Print what Hydra prints of a configuration without secrets and passwords."""
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            yield
    finally:
        print(masked(text.getvalue()), end="")
