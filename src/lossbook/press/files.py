"""Files that are whole or absent, a lock for one build at a time, and times in words."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from lossbook.press.errors import PressError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that, whenever we are stopped, `path` has its old content or all of the new.

    Raises:
        OSError: if it cannot be written, with the name of the file; the old content is then still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with open(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone.

    Raises:
        PressError: if another process holds it. The lock ends with its process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / ".lock", blocking=False), folder / ".lock.holder"
    try:
        held = lock.acquire()
    except Timeout:
        who = holder.read_text(encoding="utf-8") if holder.is_file() else "unknown"
        raise PressError(f"another build is at work in {folder} (process {who})") from None
    with held:
        holder.write_text(str(os.getpid()), encoding="utf-8")
        yield


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
