from __future__ import annotations

import contextlib
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from wild import Evil, objects

from deeplense.data.unpickle import Refused, load_array


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype=np.int64).reshape(3, 4)),
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.arange(200, dtype=np.uint8),
        np.array([True, False]),
    ],
    ids=["float64", "fortran", "big endian", "uint8", "bool"],
)
def test_numeric_arrays(array: np.ndarray, protocol: int) -> None:
    found = load_array(pickle.dumps(array, protocol))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("protocol", range(6))
def test_axion_pairs(protocol: int) -> None:
    image = np.random.default_rng(0).normal(size=(8, 8))
    for mass in (3e-23, np.float64(3e-23), np.array(3e-23), [3e-23], np.array([3e-23])):
        found = load_array(pickle.dumps(objects(image, mass), protocol))
        np.testing.assert_array_equal(found[0], image)
        assert np.ravel(found[1])[0] == 3e-23


@pytest.mark.parametrize("protocol", range(6))
def test_rows_and_nested_objects(protocol: int) -> None:
    rows = [np.arange(5.0) + k for k in range(5)]
    found = load_array(pickle.dumps(objects(*rows), protocol))
    np.testing.assert_array_equal(np.stack(found), np.stack(rows))
    nested = load_array(pickle.dumps(objects(objects(*rows), 1.0), protocol))
    np.testing.assert_array_equal(np.stack(nested[0]), np.stack(rows))


def test_names_of_numpy_1_and_python_2() -> None:
    image = np.arange(9.0).reshape(3, 3)
    old = pickle.dumps(image, 2).replace(b"numpy._core", b"numpy.core")
    np.testing.assert_array_equal(load_array(old), image)
    # Python 2 wrote bytes as SHORT_BINSTRING
    raw = np.arange(4, dtype="<i4").tobytes()
    python_2 = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x04\x85cnumpy\ndtype\nU\x02i4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x10" + raw + b"tb."
    )
    np.testing.assert_array_equal(load_array(python_2), [0, 1, 2, 3])


@pytest.mark.parametrize("protocol", range(6))
def test_code_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    flag = tmp_path / "flag"
    payload = pickle.dumps(objects(np.ones(3), Evil(flag)), protocol)
    with pytest.raises(Refused, match=r"would run code \(\w+\.system\)"):
        load_array(payload)
    assert not flag.exists()
    pickle.loads(payload)  # the payload is a real one
    assert flag.exists()


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", "ndarray.tofile"),
        (pickle.dumps(OrderedDict()), "OrderedDict"),
        (pickle.dumps(np.dtype([("a", "f8")])), "not numbers"),
        (b"cnumpy\ndtype\n(S'V999999999999'\ntR.", "not numbers"),
        (pickle.dumps([1.0, 2.0]), "no array"),
        (pickle.dumps(objects("text", 1.0)), "not numbers"),
        (pickle.dumps(objects({}, 1.0)), "not numbers"),
        (b"cnumpy\nndarray\n(NN\x86b.", "damaged"),
        (b"cnumpy\ndtype\n(N}S'dtype'\nI1\ns\x86b.", "damaged"),
        (b"", "damaged"),
        (b"\x80\x04garbage", "damaged"),
        (b"Nr\xff\xff\xff\x7f.", "damaged"),  # a memo of 16 GiB
        (b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"abc.", "damaged"),  # a bytearray of 1 TiB
    ],
)
def test_refused(payload: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        load_array(payload)


def test_sharing_does_not_explode() -> None:
    row = np.zeros(1000)
    outer = objects(*[row] * 3000)
    found = load_array(pickle.dumps(objects(outer, outer)))
    assert found[0][0] is found[0][-1]


def test_every_cut_and_flipped_byte_is_an_array_or_refused() -> None:
    payload = pickle.dumps(objects(np.arange(4.0), 1e-23), 4)
    damaged = [payload[:k] for k in range(len(payload))]
    damaged += [
        payload[:k] + bytes([payload[k] ^ 1 << bit]) + payload[k + 1 :] for k in range(len(payload)) for bit in range(8)
    ]
    for one in damaged:
        with contextlib.suppress(Refused):
            assert isinstance(load_array(one), np.ndarray)
    assert load_array(payload)[1] == 1e-23  # the stand-ins are what they were
