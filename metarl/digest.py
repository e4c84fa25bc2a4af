"""Digests of tasks: equal content, equal digest, in every process; other content, another digest.

A task's digest decides its split, and whether an environment is built anew for it. So nothing may be left out of it (a
``repr`` leaves out the middle of a long array), and nothing may enter it that is not content (an address in memory, the
order of a set).
"""

from __future__ import annotations

import dataclasses
import hashlib
import types
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarl.errors import ConfigError
from metarl.types import Task

_EXACT = 2**53
"""Up to here, every integer is a float64 of its own."""


def task_digest(task: Task) -> bytes:
    """A digest of a task's content: equal tasks, equal digests, in every process.

    Numbers are compared as float64, so ``1``, ``1.0`` and ``np.float32(1)`` are the same. Arrays count with their
    shape, sets and mappings without their order, data frames with their columns, index and values, dataclasses with
    their fields, functions with their code, and other objects with what pickle would keep of them.

    Raises:
        ConfigError: for a task that holds something without content that lasts, such as an open file.
    """
    digest = _Digest()
    digest.feed(task)
    return digest.value()


class _Digest:
    """One sha256 under construction."""

    def __init__(self, inside: tuple[int, ...] = ()) -> None:
        self._hash = hashlib.sha256()
        self._inside = list(inside)
        """Identities of the objects that are being fed, outermost first."""

    def value(self) -> bytes:
        return self._hash.digest()

    def feed(self, value: Any) -> None:
        """Add one value with all that it holds."""
        if id(value) in self._inside:
            # By its depth: a structure that holds itself has no end.
            self._text(f"outer:{self._inside.index(id(value))}")
            return
        self._inside.append(id(value))
        try:
            self._dispatch(value)
        finally:
            self._inside.pop()

    def _dispatch(self, value: Any) -> None:
        if isinstance(value, str):
            # The length keeps ["ab", "c"] apart from ["a", "bc"].
            self._text(f"text:{len(value)};{value}")
        elif isinstance(value, bytes | bytearray | memoryview):
            self._text(f"bytes:{len(value)};")
            self._hash.update(value)
        elif value is None or value is ...:
            self._text(repr(value))
        elif isinstance(value, Mapping):
            self._mapping(value)
        elif isinstance(value, AbstractSet):
            self._text(f"set:{len(value)};")
            for entry in sorted(self._apart(entry) for entry in value):
                self._hash.update(entry)
        elif type(value).__module__.split(".")[0] == "pandas":
            self._frame(value)
        elif isinstance(value, Sequence):
            self._text(f"sequence:{len(value)};")
            for entry in value:
                self.feed(entry)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            self._text(f"dataclass:{type(value).__qualname__};")
            self.feed({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
        elif isinstance(value, type | types.BuiltinFunctionType | types.ModuleType | np.ufunc):
            self._text(f"name:{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', value.__name__)};")
        elif isinstance(value, types.FunctionType):
            self._function(value)
        else:
            self._number_or_object(value)

    def _text(self, text: str) -> None:
        self._hash.update(text.encode("utf-8", "surrogatepass"))

    def _apart(self, value: Any) -> bytes:
        """The digest of one entry by itself, to sort entries by."""
        digest = _Digest(tuple(self._inside))
        digest.feed(value)
        return digest.value()

    def _mapping(self, value: Mapping[Any, Any]) -> None:
        if all(isinstance(key, str) for key in value):
            if len(self._inside) > 1:
                # Where a mapping inside another value ends; the outermost has nothing behind it.
                self._text(f"mapping:{len(value)};")
            for key in sorted(value):
                self._text(f"key:{key};")
                self.feed(value[key])
            return
        self._text(f"mapping:{len(value)};")
        for digest, key in sorted(((self._apart(key), key) for key in value), key=lambda pair: pair[0]):
            self._hash.update(digest)
            self.feed(value[key])

    def _frame(self, value: Any) -> None:
        """A data frame, series or index of pandas: names, types, values, and the index, which is one of these too."""
        if not hasattr(value, "to_numpy"):
            self._number_or_object(value)
            return
        self._text(f"pandas.{type(value).__name__};")
        if hasattr(value, "columns"):
            self.feed([list(value.columns), [str(dtype) for dtype in value.dtypes]])
            columns = [value.iloc[:, position] for position in range(value.shape[1])]
        else:
            self.feed([list(value.names) if hasattr(value, "names") else value.name, str(value.dtype)])
            columns = [value]
        for column in columns:
            self._array(np.asarray(column.to_numpy()))
        if hasattr(value, "index"):
            self.feed(value.index)

    def _number_or_object(self, value: Any) -> None:
        if isinstance(value, np.ndarray | np.generic | int | float | complex) or hasattr(value, "__array__"):
            self._array(np.asarray(value))
        else:
            self._object(value)

    def _array(self, array: NDArray[Any]) -> None:
        kind = array.dtype.kind
        if kind in "biuf" and _is_exact_as_float(array):
            self._text(str(array.shape))
            # Adding zero turns -0.0 into 0.0, which is equal to it.
            self._hash.update(np.ascontiguousarray(array.astype(np.float64) + 0.0).tobytes())
            return
        self._text(f"array:{array.dtype.kind}{array.shape};")
        if array.dtype.names is not None:
            for name in array.dtype.names:
                self._text(f"field:{name};")
                self._array(array[name])
        elif kind == "O":
            for entry in array.reshape(-1).tolist():
                self.feed(entry)
        elif kind in "US":
            # Without the width of the longest text, which is no content.
            self.feed(array.reshape(-1).tolist())
        elif kind == "c":
            self._hash.update(np.ascontiguousarray(array.astype(np.complex128) + 0.0).tobytes())
        elif kind in "iuf":
            self._text(str(array.reshape(-1).tolist()) if kind in "iu" else f"{array.dtype};")
            self._hash.update(np.ascontiguousarray(array).tobytes() if kind == "f" else b"")
        else:
            self._text(f"{array.dtype};")
            self._hash.update(np.ascontiguousarray(array).tobytes())

    def _function(self, value: types.FunctionType) -> None:
        """A function by its code and what it holds, and not by the place where it was defined."""
        code = value.__code__
        self._text(f"function:{value.__name__};")
        self._code(code)
        cells = value.__closure__ or ()
        self.feed([value.__defaults__, value.__kwdefaults__, [cell.cell_contents for cell in cells]])

    def _code(self, code: types.CodeType) -> None:
        self.feed([code.co_code, list(code.co_names), list(code.co_varnames), code.co_argcount, code.co_flags])
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self.feed(constant)

    def _object(self, value: Any) -> None:
        """Any other object, by its class and what pickle would keep of it."""
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:
            raise ConfigError(
                f"a task holds {value!r} of the type {kind}, whose content cannot be read ({error}): expected numbers, "
                "text, arrays, data frames, and dicts, lists, sets, dataclasses or plain objects of these."
            ) from error
        self._text(f"object:{kind};")
        if isinstance(reduced, str):
            self._text(reduced)
            return
        build, arguments, *rest = reduced
        self._text(f"{getattr(build, '__module__', '')}.{getattr(build, '__qualname__', build)};")
        # Arguments may name the class itself, which is told already.
        self.feed([argument for argument in arguments if argument is not type(value)])
        state, items, pairs = (*rest, None, None, None)[:3]
        self.feed(state)
        self.feed(None if items is None else list(items))
        self.feed(None if pairs is None else list(pairs))


def _is_exact_as_float(array: NDArray[Any]) -> bool:
    """Whether float64 tells the array's numbers apart."""
    if array.dtype.kind in "iu" and array.dtype.itemsize > 4 and array.size:
        return max(abs(int(array.min())), abs(int(array.max()))) <= _EXACT
    return array.dtype.kind != "f" or array.dtype.itemsize <= 8
