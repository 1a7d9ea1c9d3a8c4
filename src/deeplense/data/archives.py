"""The files of a folder, zip or tar, one at a time and in memory: nothing is extracted to disk."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import posixpath
import re
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from deeplense.data import budget
from deeplense.data.budget import Unreadable, printable
from deeplense.errors import UserError

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
BESIDE = (".csv", ".tsv", ".ecsv", ".json", ".txt", ".md", ".yaml", ".yml")  # files that say more of a set of archives
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, NotImplementedError)
PIECE = 4096  # packed bytes that are unpacked at once; bzip2 makes up to 92 MB of them
HEADER = 2**20  # bytes of a name, or of what else a tar says of a file
PACKERS: dict[bytes, Callable[[Path, str], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
UNPACKED = 2**30  # bytes of a whole archive, when that is more than `budget.RATIO` times its size


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


def is_archive(name: str) -> bool:
    return name.lower().endswith((".zip", *TARS))


def listing(source: Path) -> list[str]:
    """Names of all files under `source`, as `members` has them.

    Raises:
        UserError: no such file, or a damaged archive.
    """
    if source.is_dir():
        plain, packed = _packed(list(_folder(source)))
        return [*(member.name for member in plain), *(new for names in packed.values() for new in names.values())]
    return _names(source) if source.exists() else [member.name for member in members(source)]


def members(source: Path, together: Mapping[str, str] | None = None) -> Iterator[Member]:
    """Every file under `source`: a folder (sorted), a zip, a tar, or a single file.

    Args:
        together: name of a file -> id of its object; the files of an object come together, but in a tar.

    Raises:
        UserError: no such file, or a damaged archive.
    """
    if source.is_dir():
        plain, packed = _packed(list(_folder(source)))
        found = {member.name: member for member in plain}
        yield from (found[name] for name in _together(found, together or {}))
        for path, called in packed.items():
            yield from _called(path, called, together or {})
    elif not source.exists():
        raise UserError(f"{source}: no such file or folder")
    elif _is_zip(source):
        yield from _zip(source, together or {})
    elif is_archive(source.name):
        yield from _tar(source)
    else:
        yield _on_disk(source.parent, source.name, str(source))


def _packed(found: list[Member]) -> tuple[list[Member], dict[Path, dict[str, str]]]:
    """A folder's files, and of a folder of archives alone what each holds: name in it -> name in the folder.

    Archives whose names differ by a number are the shards of one set; others are folders of these names.
    """
    archives = [m for m in found if m.path is not None and is_archive(m.name)]
    if not archives or any(not _says_more(m.name) for m in found if m not in archives):
        return found, {}
    stems = {
        m.name: re.sub(r"\.(?:zip|tar|tgz|tbz2|txz)(?:\.\w+)?$", "", m.name, flags=re.IGNORECASE) for m in archives
    }
    sets = {name: re.sub(r"(?:[-_.]?\d+)+$", "", stem) for name, stem in stems.items()}
    packed: dict[Path, dict[str, str]] = {}
    taken: set[str] = set()
    for m in archives:
        assert m.path is not None
        folder = f"{sets[m.name]}/" if len(set(sets.values())) > 1 and sets[m.name] else ""
        names = _names(m.path)
        if not taken.isdisjoint(folder + name for name in names):  # keys that begin anew in each shard
            number = stems[m.name][len(sets[m.name]) :].strip("-_.") or str(len(packed))
            called = {name: f"{folder}{number}_{name.replace('/', '_')}" for name in names}
        else:
            called = {name: folder + name for name in names}
        taken |= set(called.values())
        packed[m.path] = called
    return [m for m in found if m not in archives], packed


def _says_more(name: str) -> bool:
    last = name.rsplit("/", 1)[-1].lower()
    return last.startswith(".") or last.endswith(BESIDE) or "." not in last


def _names(source: Path) -> list[str]:
    """Of the files of an archive, or of a single file."""
    if is_archive(source.name) and not _is_zip(source):
        return list(_tar_names(source))
    return [member.name for member in members(source)]


def _called(source: Path, called: Mapping[str, str], together: Mapping[str, str]) -> Iterator[Member]:
    """The files of an archive by their names in its folder."""
    inner = {new: name for name, new in called.items()}
    own = {name: together[new] for name, new in called.items() if new in together}
    for member in members(source, own):

        def fetch(name: str, member: Member = member) -> bytes | None:
            return member.fetch(inner[name]) if name in inner else None

        yield replace(member, name=called[member.name], fetch=fetch)


def _together(names: Iterable[str], object_of: Mapping[str, str]) -> list[str]:
    """The files of an object follow its first."""
    first: dict[str, int] = {}
    listed = list(names)
    for k, name in enumerate(listed):
        first.setdefault(object_of.get(name, name), k)
    return sorted(listed, key=lambda name: first[object_of.get(name, name)]) if object_of else listed


def _is_zip(source: Path) -> bool:
    return source.name.lower().endswith(".zip")


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
        size = path.stat().st_size
        _check_size(size, size)
        try:
            return path.read_bytes()
        except OSError as error:
            raise Unreadable(f"cannot be read ({error.strerror})") from error

    path = folder / name
    return Member(name, printable(file), fetch, "" if path.is_file() else "a dead link or no regular file", path)


def _zip(source: Path, together: Mapping[str, str]) -> Iterator[Member]:
    try:
        archive = zipfile.ZipFile(source)
    except (*DAMAGED, ValueError) as error:  # a ValueError of a name that is not in its own encoding
        raise UserError(f"{source}: not a readable zip ({_line(error)}); download it again") from error
    with archive:
        # some tools on Windows write backslashes
        named = [(i.filename.replace("\\", "/"), i) for i in archive.infolist()]
        entries = {_name(name): i for name, i in named if not name.endswith("/")}
        if sum(i.file_size for i in entries.values()) > _most(source):
            raise _bomb(source)

        def fetch(name: str) -> bytes | None:
            if name not in entries:
                return None
            entry = entries[name]
            _check_size(entry.file_size, entry.compress_size)
            try:
                with archive.open(entry) as file:
                    content = b"".join(iter(lambda: file.read(PIECE), b""))
            except (*DAMAGED, RuntimeError, ValueError) as error:
                raise Unreadable("damaged in the archive") from error
            return content

        for name in _together(entries, together):
            entry = entries[name]
            refused = _leaves(name) or ("encrypted" if entry.flag_bits & 1 else "")
            yield Member(name, printable(f"{source}/{name}"), fetch, refused)


def _tar(source: Path) -> Iterator[Member]:
    files_beside: dict[str, dict[str, bytes | tarfile.TarInfo]] = {}

    def beside(name: str) -> bytes | None:
        """A packed tar is unpacked once more for all files of the same name: every look back would do so again."""
        last = posixpath.basename(name)
        if last not in files_beside:
            files_beside[last] = {}
            room = budget.MOST_BYTES
            with _Stream(source) as other, tarfile.open(fileobj=other, mode="r:") as entries:
                for entry in entries:
                    if posixpath.basename(_name(entry.name)) == last and entry.isfile():
                        room -= entry.size
                        keep = other.packed and room >= 0
                        files_beside[last][_name(entry.name)] = other.content(entry) if keep else entry
        found = files_beside[last].get(name)
        if not isinstance(found, tarfile.TarInfo):
            return found
        if stream.packed:
            raise Unreadable(f"all {last} take more than {budget.MOST_BYTES >> 20} MiB; unpack the archive")
        return stream.content(found)

    def fetch(name: str) -> bytes | None:
        try:
            return stream.content(here) if name == _name(here.name) else beside(name)
        except DAMAGED as error:
            raise damaged(error) from error

    def damaged(error: Exception) -> UserError:
        return UserError(f"{source}: not a readable tar ({_line(error)}); download it again")

    try:
        with _Stream(source) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for here in archive:
                if not here.isdir():
                    name = _name(here.name)
                    refused = _leaves(name) or ("" if here.isfile() else "no regular file")
                    yield Member(name, printable(f"{source}/{name}"), fetch, refused)
            # tarfile takes a broken header for the end
            if stream.seek(archive.offset) != archive.offset or stream.read(512) != bytes(512):
                raise tarfile.ReadError("it ends too early")
    except DAMAGED as error:
        raise damaged(error) from error


def _tar_names(source: Path) -> Iterator[str]:
    try:
        with _Stream(source) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            yield from (_name(entry.name) for entry in archive if not entry.isdir())
    except DAMAGED as error:
        raise UserError(f"{source}: not a readable tar ({_line(error)}); download it again") from error


class _Stream(io.RawIOBase):
    """The bytes of a tar, unpacked within the budget, as `tarfile` reads its headers."""

    def __init__(self, source: Path) -> None:
        self.source = source
        with open(source, "rb") as file:
            start = file.read(6)
        opens = next((opens for magic, opens in PACKERS.items() if start.startswith(magic)), open)
        self.packed = opens is not open
        self._file: IO[bytes] = opens(source, "rb")
        self._most = _most(source) if self.packed else sys.maxsize

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(min(size, HEADER + 1) if size >= 0 else HEADER + 1)
        # a run of digits costs tarfile its square
        if len(data) > HEADER or (len(data) > 512 and re.search(rb"\d{100}", data)):
            raise tarfile.ReadError("a header is too long")
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if offset > self._most:
            raise _bomb(self.source)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()

    def content(self, entry: tarfile.TarInfo) -> bytes:
        """All bytes of a file."""
        if entry.sparse is not None:
            raise Unreadable("a sparse file; pack it anew without holes")
        _check_size(entry.size, self.source.stat().st_size)
        self.seek(entry.offset_data)
        data = self._file.read(entry.size)
        if len(data) < entry.size:
            raise tarfile.ReadError("unexpected end of data")
        return data


def _name(path: str) -> str:
    """`./a//b` is `a/b`."""
    return posixpath.normpath(path)


def _leaves(name: str) -> str:
    return "its path leaves the archive" if name.startswith(("/", "../")) or name[1:3] == ":/" else ""


def _check_size(size: int, packed: int) -> None:
    """Before it is read: `size` bytes, `packed` in the file."""
    if size > budget.LARGEST:
        raise Unreadable(f"larger than {budget.LARGEST >> 30} GiB")
    if not budget.unpacks(size, packed):
        raise Unreadable(f"unpacks to {size >> 20} MiB, more than {budget.RATIO} times its size")


def _most(source: Path) -> int:
    """Bytes that an archive may hold."""
    return max(UNPACKED, budget.RATIO * source.stat().st_size)


def _bomb(source: Path) -> UserError:
    return UserError(
        f"{source}: unpacks to more than {_most(source) >> 20} MiB, {budget.RATIO} times its size; unpack it and give "
        "the folder"
    )


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
