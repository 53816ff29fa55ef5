"""Files that others may have made."""

import os
from pathlib import Path

import pytest

from kdbench.system import files


@pytest.mark.parametrize("read", [files.read_small, files.open_regular])
def test_a_pipe_that_takes_a_file_s_place_before_it_is_opened_is_refused(
    tmp_path, monkeypatch, read
):
    path = tmp_path / "record.json"
    path.write_text("{}")
    original = os.open

    def replaced(name: Path, *arguments: int) -> int:
        os.unlink(name)
        os.mkfifo(name)
        return original(name, *arguments)

    monkeypatch.setattr(os, "open", replaced)
    with pytest.raises(ValueError, match="not a regular file"):
        read(path)
