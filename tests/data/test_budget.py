"""Small files that would take gigabytes or hours are skipped with a reason, in little memory and time."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import bombs
import h5py
import numpy as np
import pytest
import wild

from deeplense.data import archives, budget
from deeplense.data.formats import Foreign, Skipped, read_images
from deeplense.errors import UserError

READ = """if True:
    import json, resource, sys
    from pathlib import Path
    from deeplense.data.formats import read_images

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    before = peak()
    found = {Path(item.file).name: getattr(item, "reason", "an image") for item in read_images(sys.argv[1])}
    print(json.dumps([found, peak() - before]))
"""


def test_bombs_are_skipped_in_bounded_memory(tmp_path: Path) -> None:
    expected = bombs.write(tmp_path / "set")
    assert max(p.stat().st_size for p in (tmp_path / "set").iterdir()) < 2**23
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "set")], capture_output=True, text=True, timeout=300, check=True
    )
    found, megabytes = json.loads(done.stdout)
    assert found.pop("order.fits") == "an image"  # its distortion of 20,000² terms says nothing of the scale
    assert set(found) == set(expected)
    for name, part in expected.items():
        assert part in found[name], name
    assert megabytes < 600  # each would take 0.6 to 4 GB


def reasons(source: Path) -> dict[str, str]:
    return {
        item.file.removeprefix(f"{source}/"): item.reason for item in read_images(source) if isinstance(item, Skipped)
    }


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets of some MB."""
    monkeypatch.setattr(budget, "MOST_BYTES", 2**20)
    monkeypatch.setattr(archives, "UNPACKED", 2**23)


@pytest.mark.usefixtures("small")
def test_a_member_that_unpacks_to_more_than_an_image(tmp_path: Path) -> None:
    bomb = wild.header_npy((2**19,)) + bytes(2**22)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("bomb.npy", bomb)
        packed.writestr("good.npy", wild.npy_bytes(wild.lens(16)))
    wild.write(tmp_path / "set" / "bomb.npy", bomb)
    wild.write(tmp_path / "set" / "good.npy", wild.lens(16))
    wild.tarred(tmp_path / "set", tmp_path / "a.tar.gz")
    for name in ("a.zip", "a.tar.gz"):
        assert reasons(tmp_path / name) == {"bomb.npy": "unpacks to 4 MiB, more than 50 times its size"}
    wild.tarred(tmp_path / "set", tmp_path / "a.tar")  # not packed: the file pays for it
    assert reasons(tmp_path / "a.tar") == {"bomb.npy": "shape 524288 is not that of an image" + _channels()}


def _channels() -> str:
    from deeplense.data.arrays import FEWER_CHANNELS

    return FEWER_CHANNELS


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar.bz2", "a.tar.xz"])
def test_an_archive_that_unpacks_to_too_much(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for k in range(20):
                packed.writestr(f"{k}.txt", bytes(2**19))
    else:
        with tarfile.open(path, "w:" + name.rsplit(".")[-1]) as archive:  # type: ignore[call-overload]
            for k in range(20):
                info = tarfile.TarInfo(f"{k}.txt")
                info.size = 2**19
                archive.addfile(info, io.BytesIO(bytes(2**19)))
    with pytest.raises(
        UserError, match=r"unpacks to more than 8 MiB, 50 times its size; unpack it and give the folder"
    ):
        list(read_images(path))


def test_a_zip_that_lies_about_its_sizes(tmp_path: Path) -> None:
    """It says 1,000 bytes and holds 64 MiB of them."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.npy", bytes(2**26))
    path.write_bytes(path.read_bytes().replace((2**26).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    assert reasons(path) == {"a.npy": "damaged in the archive"}


def test_holes_of_a_tar_are_not_filled(tmp_path: Path) -> None:
    bombs.sparse_tar(tmp_path / "a.tar", 2**30)
    assert reasons(tmp_path / "a.tar") == {"hole.npy": "a sparse file; pack it anew without holes"}


def test_a_tar_header_without_an_end(tmp_path: Path) -> None:
    bombs.long_pax(tmp_path / "a.tar")
    with pytest.raises(UserError, match=r"not a readable tar \(a header is too long\)"):
        list(read_images(tmp_path / "a.tar"))


def test_companions_of_a_packed_tar_are_found_in_three_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wild.slacs(tmp_path / "set", tuple(f"J{k:04d}" for k in range(30)), size=24)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for path in sorted((tmp_path / "set").rglob("*.fits"), key=lambda p: (p.parent, p.name != "noise.fits")):
            archive.add(path, path.relative_to(tmp_path / "set"))  # noise before its image
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    opened: list[str] = []
    real = gzip.open
    monkeypatch.setitem(archives.PACKERS, b"\x1f\x8b", lambda *a: opened.append("") or real(*a))
    back: list[int] = []
    rewind = gzip._GzipReader._rewind  # type: ignore[attr-defined]
    monkeypatch.setattr(gzip._GzipReader, "_rewind", lambda self: back.append(1) or rewind(self))  # type: ignore[attr-defined]
    found = [item for item in read_images(tmp_path / "a.tar.gz") if isinstance(item, Foreign)]
    assert len(found) == 30
    assert all(item.nan_share > 0 for item in found)
    assert (len(opened), len(back)) == (3, 0)  # names, images, companions


def test_names_that_are_empty_or_not_text(tmp_path: Path) -> None:
    good = wild.npy_bytes(wild.lens(16))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("x", b"")
        packed.writestr("cdm/a\n\x1b[31m.npy", good)
    whole = (tmp_path / "a.zip").read_bytes()
    local, central = whole.index(b"PK\3\4"), whole.index(b"PK\1\2")
    # the name of the first entry, one letter, goes
    cut = whole[: local + 26] + b"\0\0" + whole[local + 28 : local + 30] + whole[local + 31 :]
    at = cut.index(b"PK\1\2")
    cut = cut[: at + 28] + b"\0\0" + cut[at + 30 : at + 46] + cut[at + 47 :]
    end = cut.rindex(b"PK\5\6")
    shifted = (central - 1).to_bytes(4, "little")
    cut = cut[: end + 12] + (end - at).to_bytes(4, "little") + shifted + cut[end + 20 :]
    second = cut.index(b"PK\1\2", at + 4)
    old = int.from_bytes(cut[second + 42 : second + 46], "little")
    cut = cut[: second + 42] + (old - 1).to_bytes(4, "little") + cut[second + 46 :]
    (tmp_path / "empty.zip").write_bytes(cut)
    found = list(read_images(tmp_path / "empty.zip"))
    assert [item.reason for item in found if isinstance(item, Skipped)] == ["not an image format"]
    assert [item.id for item in found if isinstance(item, Foreign)] == ["cdm/a\\n\\x1b[31m"]
    utf8 = whole.replace(b"x", b"\xff")
    at = utf8.index(b"PK\1\2")
    utf8 = utf8[: at + 9] + b"\x08" + utf8[at + 10 :]  # "the name is UTF-8"
    (tmp_path / "utf8.zip").write_bytes(utf8)
    with pytest.raises(UserError, match=r"utf8.zip: not a readable zip") as caught:
        list(read_images(tmp_path / "utf8.zip"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "lzf"},
        {"compression": "gzip", "chunks": (4, 20, 20)},
        {"chunks": (1, 10, 20)},
    ],
)
def test_honest_hdf5_of_every_packing_is_read(tmp_path: Path, options: dict[str, object]) -> None:
    stack = np.stack([wild.lens(20, k) for k in range(7)])
    stack[3] = 0.5
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", data=stack, maxshape=(None, 20, 20) if options else None, **options)
    found = [item.image[0] for item in read_images(tmp_path / "a.h5") if isinstance(item, Foreign)]
    np.testing.assert_array_equal(np.stack(found), stack.astype(np.float32))


def test_chunks_that_lie_on_each_other_are_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("images", (400, 1024, 1024), "u1", chunks=(1, 1024, 1024), compression="gzip")
        stored = zlib.compress(bytes(2**20))
        for k in range(400):
            data.id.write_direct_chunk((k, 0, 0), stored)
    assert reasons(path.parent) == {"a.h5": "unpacks to 400 MiB, more than 50 times its size; write it anew unpacked"}
