"""Pickled NumPy arrays, read without running anything that the pickle says.

A pickle is a program that may call any function. Here the few names that NumPy writes stand for passive stand-ins, and
every other name is refused before it is looked up. The stand-ins keep what they are given; plain Python builds the
arrays afterwards, because NumPy's own `__setstate__` trusts its argument.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMBER = re.compile(r"[<>=|]?([biufc]\d{1,2}|\?)")
OBJECT = re.compile(r"[<>=|]?O\d?")
MEMO = ("PUT", "BINPUT", "LONG_BINPUT")


class Refused(pickle.UnpicklingError):
    """Why a pickle is not read."""


def load_array(payload: bytes) -> NDArray[Any]:
    """The array in a pickle of protocol 0 to 5, of NumPy 1 or 2 and Python 2 or 3.

    Returns:
        A numeric array, or an object array whose elements are numeric arrays and floats.

    Raises:
        Refused: it names anything but NumPy's arrays and would thus run code, or it is damaged.
    """
    try:
        for opcode, argument, _ in pickletools.genops(payload):
            # the unpickler makes room for as many notes as the highest number says
            if opcode.name in MEMO and isinstance(argument, int) and argument > len(payload):
                raise Refused("damaged pickle")
        made = _Unpickler(io.BytesIO(payload), encoding="latin-1").load()
        if not isinstance(made, _Array):
            raise Refused("no array in the pickle")
        return made.build()
    except Refused:
        raise
    except Exception as error:  # a damaged pickle fails in any way
        raise Refused("damaged pickle") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy._core" or module.startswith("numpy._core."):  # NumPy 2
            module = module.replace("_core", "core", 1)
        if (module, name) not in _ADMITTED:
            raise Refused(f"would run code ({module}.{name})")
        return _ADMITTED[module, name]


class _StandIn:
    """Has a `__setstate__`, so that a pickle cannot change attributes of the class itself."""

    def __setstate__(self, state: Any) -> None:
        raise Refused("damaged pickle")


class _Bytes(_StandIn):
    """`_codecs.encode(text, "latin1")`: how protocols 0 to 2 write bytes."""

    def __new__(cls, text: str, encoding: str) -> Any:
        return text.encode("latin-1")


class _DType(_StandIn):
    def __init__(self, spec: str, *_: Any) -> None:
        if not NUMBER.fullmatch(spec) and not OBJECT.fullmatch(spec):
            raise Refused("not numbers")
        self.dtype = np.dtype(spec)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(_StandIn):
    """`_reconstruct(ndarray, (0,), "b")`, then the state says all."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self.state = tuple(state[-4:])

    def build(self, nested: int = 2) -> NDArray[Any]:
        shape, dtype, fortran, raw = self.state
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise Refused("damaged pickle")
        if dtype.dtype != object:
            flat = np.frombuffer(_raw(raw), dtype.dtype)
        elif isinstance(raw, list) and len(raw) == math.prod(shape) and nested:
            flat = np.empty(len(raw), dtype=object)
            known: dict[int, Any] = {}  # one object may stand in a list a million times
            for k, item in enumerate(raw):
                if id(item) not in known:
                    known[id(item)] = _element(item, nested - 1)
                flat[k] = known[id(item)]
        else:
            raise Refused("damaged pickle")
        return flat.reshape(shape, order="F" if fortran else "C")


def _raw(raw: Any) -> bytes:
    """Python 2 wrote bytes as text."""
    return raw.encode("latin-1") if isinstance(raw, str) else bytes(memoryview(raw))


def _element(item: Any, nested: int) -> Any:
    if isinstance(item, _Array):
        return item.build(nested)
    if isinstance(item, list | tuple) and all(isinstance(n, int | float) for n in item):
        return np.array(item, dtype=np.float64)
    if isinstance(item, int | float):
        return float(item)
    raise Refused("not numbers")


class _Scalar(_StandIn):
    """`scalar(dtype, raw)`: one number."""

    def __new__(cls, dtype: _DType, raw: Any) -> Any:
        if dtype.dtype == object:
            raise Refused("not numbers")
        return np.frombuffer(_raw(raw), dtype.dtype, 1)[0].item()


class _FromBuffer(_StandIn):
    """`_frombuffer(raw, dtype, shape, order)`: an array in protocol 5."""

    def __new__(cls, raw: Any, dtype: _DType, shape: Any, order: str, *_: Any) -> Any:
        if order not in ("C", "F"):
            raise Refused("an array in neither C nor Fortran order")
        array = _Array()
        array.__setstate__((shape, dtype, order == "F", raw))
        return array


_ADMITTED: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
    ("numpy", "ndarray"): _StandIn,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _Bytes,
}
