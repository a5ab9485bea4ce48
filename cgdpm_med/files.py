"""The error for input that cannot be used, and files that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PathLike = str | os.PathLike[str]


class InputError(ValueError):
    """A file or argument that cannot be used; ``str()`` is one line: "path: what. remedy".

    Args:
        what: what is wrong, with the place (slice, axis, number) where there is one.
        path: the file or folder concerned.
        remedy: what the user can do about it.
    """

    def __init__(self, what: str, *, path: PathLike | None = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.path = None if path is None else Path(path)
        self.remedy = remedy

    def __str__(self) -> str:
        text = self.what if self.path is None else f"{self.path}: {self.what}"
        if self.remedy:
            text = f"{text.rstrip('.')}. {self.remedy}"
        # a file name may hold line breaks, or bytes that are not UTF-8 (surrogates): neither may break a log line
        return text.replace("\r", " ").replace("\n", " ").encode("utf-8", "backslashreplace").decode()


@contextmanager
def atomic_write(path: PathLike) -> Iterator[BinaryIO]:
    """A binary file that appears under ``path`` when the block ends well, and leaves nothing behind when it does not.

    The bytes go to a hidden temporary name in the same folder, reach the disk, and are renamed (also over an existing
    file). Missing parent folders are made.

    Raises:
        InputError: the place cannot be written to: read-only, no permission, full, a folder of that name, or a name
            that is too long.
    """
    path = Path(path)
    temporary = path.with_name(f"{_temporary_prefix(path)}{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        try:
            with open(temporary, "xb") as file:
                _lock(file)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            _discard(temporary)
            raise
    except OSError as error:
        raise InputError(f"cannot be written: {_reason(error)}", path=path, remedy=_write_remedy(error)) from error


def _write_remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "Free space there or choose another folder"
    if error.errno == errno.ENAMETOOLONG:
        return "Choose a shorter name"
    return "Choose a folder that can be written to"


def check_folder(folder: Path) -> None:
    """Raises InputError when results could not be written, before hours of work go into them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = "is a file" if folder.is_file() else f"cannot be written: {(error.strerror or str(error)).lower()}"
        raise InputError(what, path=folder, remedy="Choose a folder that can be written to") from error


def check_place(folder: Path) -> None:
    """As :func:`check_folder`, for a folder that is made later: nothing is left behind.

    Raises:
        InputError: for a file, and for a folder, or the nearest one above it, in which nothing can be written.
    """
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        check_folder(nearest)
    except InputError as error:
        raise InputError(error.what, path=nearest if nearest.is_file() else folder, remedy=error.remedy) from error


def sweep_temporaries(path: PathLike) -> None:
    """Remove what a killed process left of a file it was writing.

    What a process still writes stays, where files can be locked: a scheduler may lose sight of a worker that lives.
    """
    path = Path(path)
    for stale in path.parent.glob(f"{_temporary_prefix(path)}*.tmp"):
        if not _is_locked(stale):
            _discard(stale)


@contextmanager
def reserved(path: PathLike) -> Iterator[None]:
    """Keeps this machine's other processes from the results beside ``path`` while the block runs.

    Raises:
        InputError: another process has them.
    """
    if fcntl is None:
        yield
        return
    digest = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
    place = Path(tempfile.gettempdir()) / f"cgdpm_med-{os.getuid()}-{digest}.lock"
    with open(place, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            remedy = "Wait until it ends, or give another output folder"
            raise InputError("is being made by another run", path=path, remedy=remedy) from error
        try:
            yield
        finally:
            _discard(place)


def _lock(file: BinaryIO) -> None:
    """Until it is closed, or its process ends in whatever way."""
    if fcntl is not None:
        with suppress(OSError):  # some network's disks have no locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_locked(path: Path) -> bool:
    if fcntl is None:
        return False
    try:
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _temporary_prefix(path: Path) -> str:
    """Begins the temporary names of one file; a digest, so that a long name stays short enough."""
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}-"


def _discard(path: Path) -> None:
    with suppress(OSError):  # the disk went read-only or away: the error that brought us here is the one to report
        path.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def read_failure(path: Path, error: OSError) -> InputError:
    """What to raise where the operating system refuses to read ``path``."""
    remedies = {
        errno.ENOENT: "Check the name",
        errno.EISDIR: "Give a file inside this folder",
        errno.ELOOP: "Remove the loop of symbolic links",
        errno.EACCES: "Ask for permission to read it",
    }
    remedy = remedies.get(error.errno or 0, "Copy or export the file again")
    return InputError(f"cannot be read: {_reason(error)}", path=path, remedy=remedy)


def archive_damage(path: PathLike) -> str | None:
    """What is wrong with a file that ``torch.save`` may have written, or None: its reader compares no checksums.

    A file that is no archive at all is left to whoever reads it.

    Raises:
        OSError: for a file that cannot be opened.
    """
    with open(path, "rb") as file:
        start = file.read(2)
    if not start:
        return "is an empty file"
    if not zipfile.is_zipfile(path):  # the table at its end is missing
        return "is truncated" if start == b"PK" else None
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        return f"is damaged ({error})"
    return None if bad is None else f"is damaged (checksum of {bad})"


def listed(items: Iterable[object], most: int = 8) -> str:
    """The first few items, separated by commas, and how many more there are."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
