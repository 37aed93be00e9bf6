import errno
import os
import subprocess
import sys
import time

import pytest

from lossbook.press.errors import PressError
from lossbook.press.files import locked, write_whole

# Writes two versions of a large text in turn, for ever.
WRITER = """
import sys
from pathlib import Path
from lossbook.press.files import write_whole
while True:
    for letter in "ab":
        write_whole(Path(sys.argv[1]), letter * 4_000_000)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path, wait_for):
    path = tmp_path / "file"
    for delay in (0.05, 0.1, 0.15, 0.2, 0.25):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        wait_for(path.exists)
        # Any moment will do.
        time.sleep(delay)
        writer.kill()
        writer.wait()
        text = path.read_text()
        assert len(text) == 4_000_000 and len(set(text)) == 1


def test_what_cannot_be_written_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new\udc80")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_a_full_disk_names_the_file(tmp_path, small_disk):
    path = small_disk / "file"
    write_whole(path, "old")
    with pytest.raises(OSError) as error:
        write_whole(path, "x" * 20_000_000)
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(path)
    assert path.read_text() == "old" and os.listdir(small_disk) == ["file"]


def test_one_holder_at_a_time(tmp_path):
    with locked(tmp_path), pytest.raises(PressError, match=f"process {os.getpid()}"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
