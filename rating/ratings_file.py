"""ratings.jsonl while somebody rates: locked, only ever longer, and on the disk before an answer.

Next: rating/session.py.
"""

import fcntl
import os
from pathlib import Path

from data.ratings import Act, read_acts, unfinished_line
from runtime.errors import InputError, json_line


class RatingsFile:
    """The file, made if need be, and locked until `close` or the end of this process.

    A line at its end that was never finished, as a power cut leaves it, is cut off and told.

    Attributes:
        acts: those in it that still stand, by all raters.
    Raises InputError for a file that is in use, cannot be written, or holds other lines.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            if path.exists() and not path.is_file():
                raise InputError(f"--output {path}: is no regular file; name another")
            is_new = not path.exists()
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise InputError(f"--output {path}: cannot be written ({error.strerror})") from None
        try:
            self._lock()
            if is_new:
                _flush_directory(path.parent)
            self._end_last_line()
            self.acts: list[Act] = read_acts(path)
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "another rate.py is writing there; end it, or name another file"
            raise InputError(f"--output {self.path}: {what}") from None
        except OSError as error:
            what = f"cannot be locked ({error.strerror}); name a file on a local disk"
            raise InputError(f"--output {self.path}: {what}") from None

    def _end_last_line(self) -> None:
        data = self.path.read_bytes()
        if cut := len(unfinished_line(data)):
            os.ftruncate(self._file, len(data) - cut)
            print(f"{self.path}: a last line that was never finished is cut off ({cut} bytes)")
        elif data and not data.endswith(b"\n"):
            self._write(b"\n")

    def append(self, row: dict) -> None:
        """Add a line and wait until the disk has it. On OSError the file is as before."""
        self._write(json_line(row).encode("utf-8"))

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, size)  # half a line would spoil the next one
            raise

    def close(self) -> None:
        """Release the lock."""
        os.close(self._file)


def _flush_directory(directory: Path) -> None:
    """A new file survives a power cut only with its entry in the directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
