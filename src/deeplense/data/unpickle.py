"""Pickled NumPy arrays, read without running anything that the pickle says.

A pickle is a program that may call any function. Here the few names that NumPy writes stand for passive stand-ins, and
every other name is refused before it is looked up. The stand-ins keep what they are given; plain Python builds the
arrays afterwards, because NumPy's own `__setstate__` trusts its argument. A pickle may also name one object any number
of times, so that little makes much: the steps, the bytes and the values that it makes have a sum.
"""

from __future__ import annotations

import functools
import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

NUMBER = re.compile(r"[<>=|]?([biufc]\d{1,2}|\?)")
OBJECT = re.compile(r"[<>=|]?O\d?")
MEMO = ("PUT", "BINPUT", "LONG_BINPUT")
NESTED = 4  # dictionaries in each other
LONGEST_NAME = 200
MOST_STEPS = 2**21  # instructions, and elements of arrays of objects

Built = TypeVar("Built")


class Refused(pickle.UnpicklingError):
    """Why a pickle is not read."""


def load_array(content: bytes, start: int = 0) -> NDArray[Any]:
    """The array in a pickle of protocol 0 to 5, of NumPy 1 or 2 and Python 2 or 3.

    Args:
        start: where the pickle begins in `content`.

    Returns:
        A numeric array, or an object array whose elements are numeric arrays and floats.

    Raises:
        Refused: it names anything but NumPy's arrays and would thus run code, it makes more than it holds, or it is
            damaged.
    """

    def build(made: Any, budget: _Budget) -> NDArray[Any]:
        if not isinstance(made, _Array):
            raise Refused("no array in the pickle")
        return made.build(budget)

    return _load(content, start, build)


def load_named(content: bytes, start: int = 0) -> dict[str, NDArray[Any]]:
    """The arrays in a pickle of an array, of a list of them, or of a dictionary, also nested: `outer/inner`.

    Returns:
        Numeric arrays; arrays of objects of rows that differ, and of texts. An array that is no part of a dictionary
        has the name "".

    Raises:
        Refused: as `load_array` does.
    """
    return _load(content, start, lambda made, budget: dict(_named("", made, budget, NESTED)))


def _load(content: bytes, start: int, build: Callable[[Any, _Budget], Built]) -> Built:
    file = io.BytesIO(content)
    file.seek(start)
    try:
        notes = 0
        for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            # the unpickler makes room for as many notes as the highest number says
            notes += opcode.name in MEMO or opcode.name == "MEMOIZE"
            if opcode.name in MEMO and isinstance(argument, int) and argument > notes:
                raise Refused("damaged pickle")
            if step > MOST_STEPS:
                raise Refused("a pickle of too many values; save the array as numbers, not as objects")
        file.seek(start)
        budget = _Budget(len(content) - start)
        return build(_Unpickler(file, budget).load(), budget)
    except Refused:
        raise
    except Exception as error:  # a damaged pickle fails in any way
        raise Refused("damaged pickle") from error


def _named(path: str, made: Any, budget: _Budget, nested: int) -> Iterator[tuple[str, NDArray[Any]]]:
    if isinstance(made, dict) and nested:
        budget.spend(steps=len(made))
        for key, value in made.items():
            if isinstance(key, bytes):
                key = key.decode("latin-1")
            if not isinstance(key, str | int) or len(str(key)) > LONGEST_NAME:
                raise Refused("a dictionary whose keys are no names")
            yield from _named(f"{path}/{key}" if path else str(key), value, budget, nested - 1)
    elif isinstance(made, str):
        budget.spend(len(made))
        yield path, np.array(made, dtype=object)
    elif isinstance(made, _Array) and (texts := made.texts()):
        yield from _named(path, texts, budget, nested)
    elif isinstance(made, list | tuple) and made and all(isinstance(item, str) for item in made):
        budget.spend(steps=len(made))
        array = np.empty(len(made), dtype=object)
        array[:] = made
        yield path, array
    elif isinstance(made, list | tuple) and any(isinstance(item, _Array) for item in made):
        budget.spend(steps=len(made))
        array = np.empty(len(made), dtype=object)
        for k, item in enumerate(made):
            array[k] = _element(item, budget, 1)
        yield path, array
    elif made is not None:
        yield path, np.asarray(_element(made, budget, 2))


class _Budget:
    """What one pickle may still make; every array is built once, however often it is named."""

    def __init__(self, n_bytes: int) -> None:
        self.bytes = n_bytes  # an honest pickle makes no more than it holds
        self.steps = MOST_STEPS
        self.built: dict[int, Any] = {}

    def spend(self, n_bytes: int = 0, steps: int = 0) -> None:
        self.bytes -= n_bytes
        self.steps -= steps
        if self.bytes < 0 or self.steps < 0:
            raise Refused("a pickle that makes more than it holds")


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, budget: _Budget) -> None:
        super().__init__(file, encoding="latin-1")
        self.budget = budget

    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy._core" or module.startswith("numpy._core."):  # NumPy 2
            module = module.replace("_core", "core", 1)
        if (module, name) not in _ADMITTED:
            raise Refused(f"would run code ({module}.{name})")
        if name == "encode":
            return functools.partial(_as_bytes, self.budget)
        return _ADMITTED[module, name]


def _as_bytes(budget: _Budget, text: str, encoding: str) -> bytes:
    """`_codecs.encode(text, "latin1")`: how protocols 0 to 2 write bytes."""
    budget.spend(len(text))
    return text.encode("latin-1")


class _StandIn:
    """Has a `__setstate__`, so that a pickle cannot change attributes of the class itself."""

    def __setstate__(self, state: Any) -> None:
        raise Refused("damaged pickle")


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

    def texts(self) -> list[str]:
        """Of a list of texts; empty where it is none."""
        shape, dtype, _, raw = self.state
        plain = dtype.dtype == object and isinstance(raw, list) and shape == (len(raw),)
        return raw if plain and all(isinstance(item, str) for item in raw) else []

    def build(self, budget: _Budget, nested: int = 2) -> NDArray[Any]:
        shape, dtype, fortran, raw = self.state
        if len(shape) > 32 or not all(isinstance(n, int) and 0 <= n < 2**48 for n in shape):
            raise Refused("damaged pickle")
        if dtype.dtype != object:
            flat = np.frombuffer(_raw(raw, budget), dtype.dtype)
        elif isinstance(raw, list) and len(raw) == math.prod(shape) and nested:
            budget.spend(steps=len(raw))
            flat = np.empty(len(raw), dtype=object)
            for k, item in enumerate(raw):
                flat[k] = _element(item, budget, nested - 1)
        else:
            raise Refused("damaged pickle")
        return flat.reshape(shape, order="F" if fortran else "C")


def _raw(raw: Any, budget: _Budget | None = None) -> bytes | bytearray:
    """Python 2 wrote bytes as text."""
    if isinstance(raw, bytes | bytearray):
        return raw
    if not isinstance(raw, str):
        raise Refused("damaged pickle")
    if budget is not None:
        budget.spend(len(raw))
    return raw.encode("latin-1")


def _element(item: Any, budget: _Budget, nested: int) -> Any:
    if id(item) not in budget.built:
        budget.built[id(item)] = _made(item, budget, nested)
    return budget.built[id(item)]


def _made(item: Any, budget: _Budget, nested: int) -> Any:
    if isinstance(item, _Array):
        return item.build(budget, nested)
    if isinstance(item, list | tuple):
        budget.spend(steps=len(item))
        if all(isinstance(n, int | float) for n in item):
            return np.array(item, dtype=np.float64)
    if isinstance(item, int | float):
        return float(item)
    raise Refused("not numbers")


class _Scalar(_StandIn):
    """`scalar(dtype, raw)`: one number."""

    def __new__(cls, dtype: _DType, raw: Any) -> Any:
        if dtype.dtype == object or len(raw) > 32:
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


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
    ("numpy", "ndarray"): _StandIn,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _StandIn,
}
