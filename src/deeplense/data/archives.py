"""The files of a folder, zip or tar, one at a time and in memory: nothing is extracted to disk."""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from deeplense.errors import UserError

LARGEST = 2 * 1024**3  # bytes of a file that is read into memory
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
DAMAGED = (OSError, EOFError, zlib.error, LZMAError, tarfile.TarError, zipfile.BadZipFile, NotImplementedError)


class Unreadable(ValueError):
    """Why one file cannot be used; the others can."""


@dataclass(frozen=True)
class Member:
    """One file.

    Attributes:
        name: its path relative to the source, with forward slashes.
        file: how to call it to the user.
        fetch: the bytes of any file of the source by name; None where there is none.
        refused: why it must not be read, empty when it may.
        path: where it lies on disk; None in an archive.
    """

    name: str
    file: str
    fetch: Callable[[str], bytes | None]
    refused: str = ""
    path: Path | None = None

    def read(self) -> bytes:
        """All bytes.

        Raises:
            Unreadable: too large, empty, encrypted, damaged, or a path that leaves the archive.
            UserError: the archive itself is damaged.
        """
        if self.refused:
            raise Unreadable(self.refused)
        content = self.fetch(self.name)
        if not content:
            raise Unreadable("empty file")
        return content

    def open(self) -> Path | io.BytesIO:
        """For readers that need not have all bytes in memory; raises as `read`."""
        if self.path is None or self.refused or not self.path.stat().st_size:
            return io.BytesIO(self.read())
        return self.path

    def sibling(self, name: str) -> bytes | None:
        """The bytes of a file in the same folder; None where there is none."""
        return self.fetch(str(PurePosixPath(self.name).with_name(name)))


def printable(name: str) -> str:
    """A file's name that can be printed and stored: a byte that is no UTF-8 becomes \\xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_archive(name: str) -> bool:
    return name.lower().endswith((".zip", *TARS))


def members(source: Path) -> Iterator[Member]:
    """Every file under `source`: a folder (sorted), a zip, a tar, or a single file.

    Raises:
        UserError: no such file, or a damaged archive.
    """
    if source.is_dir():
        yield from _folder(source)
    elif not source.exists():
        raise UserError(f"{source}: no such file or folder")
    elif source.name.lower().endswith(".zip"):
        yield from _zip(source)
    elif is_archive(source.name):
        yield from _tar(source)
    else:
        yield _on_disk(source.parent, source.name, str(source))


def _folder(source: Path) -> Iterator[Member]:
    visited = set()  # links may lead in a circle
    for folder, folders, files in os.walk(source, followlinks=True, onerror=_no_access):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders.sort()
        for file in sorted(files):
            path = Path(folder) / file
            yield _on_disk(source, path.relative_to(source).as_posix(), str(path))


def _no_access(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be listed ({error.strerror}); change its permissions or move it away")


def _on_disk(folder: Path, name: str, file: str) -> Member:
    def fetch(name: str) -> bytes | None:
        path = folder / name
        if not path.is_file():
            return None
        _check_size(path.stat().st_size)
        try:
            return path.read_bytes()
        except OSError as error:
            raise Unreadable(f"cannot be read ({error.strerror})") from error

    path = folder / name
    return Member(name, printable(file), fetch, "" if path.is_file() else "a dead link or no regular file", path)


def _zip(source: Path) -> Iterator[Member]:
    try:
        archive = zipfile.ZipFile(source)
    except DAMAGED as error:
        raise UserError(f"{source}: not a readable zip ({error}); download it again") from error
    with archive:
        # some tools on Windows write backslashes
        entries = {_name(i.filename.replace("\\", "/")): i for i in archive.infolist() if not i.is_dir()}

        def fetch(name: str) -> bytes | None:
            if name not in entries:
                return None
            _check_size(entries[name].file_size)
            try:
                return archive.read(entries[name])
            except (*DAMAGED, RuntimeError) as error:
                raise Unreadable("damaged in the archive") from error

        for name, entry in entries.items():
            refused = _leaves(name) or ("encrypted" if entry.flag_bits & 1 else "")
            yield Member(name, f"{source}/{name}", fetch, refused)


def _tar(source: Path) -> Iterator[Member]:
    def damaged(error: Exception) -> UserError:
        return UserError(f"{source}: not a readable tar ({str(error).splitlines()[0]}); download it again")

    def fetch(name: str) -> bytes | None:
        try:
            # a look for companions rewinds a compressed tar, a look at the current entry does not
            entries = [here] if name == _name(here.name) else archive.getmembers()
            for entry in entries:
                if name == _name(entry.name) and entry.isfile():
                    _check_size(entry.size)
                    content = archive.extractfile(entry)
                    return content.read() if content else None
            return None
        except DAMAGED as error:
            raise damaged(error) from error

    try:
        with tarfile.open(source) as archive:
            for here in archive:
                if not here.isdir():
                    name = _name(here.name)
                    refused = _leaves(name) or ("" if here.isfile() else "no regular file")
                    yield Member(name, printable(f"{source}/{name}"), fetch, refused)
            # tarfile takes a broken header for the end
            file = archive.fileobj
            if file is None or file.seek(archive.offset) != archive.offset or file.read(512) != bytes(512):
                raise tarfile.ReadError("it ends too early")
    except DAMAGED as error:
        raise damaged(error) from error


def _name(path: str) -> str:
    """`./a//b` is `a/b`."""
    return posixpath.normpath(path)


def _leaves(name: str) -> str:
    return "its path leaves the archive" if name.startswith(("/", "../")) or name[1:3] == ":/" else ""


def _check_size(size: int) -> None:
    if size > LARGEST:
        raise Unreadable("larger than 2 GiB")
