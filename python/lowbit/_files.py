"""Save and load named arrays, quantized or not, as safetensors files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lowbit import _core
from lowbit._quantized import Quantized

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The metadata key under which quantized arrays are described, and the description's version.
_KEY, _VERSION = "lowbit", 1


def save(path: str | os.PathLike[str], arrays: Mapping[str, Quantized | NDArray[Any]]) -> None:
    """Write named arrays to a safetensors file; the file appears whole or not at all.

    Parameters
    ----------
    path : str or path-like
        Where to write.
    arrays : mapping of str to Quantized or numpy.ndarray
        A Quantized is stored as its packed codes (U8, under its name), ``name.scale`` and ``name.offset``, and
        described in the metadata under ``lowbit``; plain arrays as they are.

    Raises
    ------
    TypeError
        A name is not a str, or a value neither a Quantized nor an array that safetensors can hold.
    lowbit.Error
        Two things would have the same name.

    Examples
    --------
    >>> import numpy as np, lowbit as lb, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> lb.save(path, {"w": lb.quantize(np.ones((2, 3), np.float32), "int4"), "b": np.zeros(3)})
    >>> lb.load(path)
    {'b': array([0., 0., 0.]), 'w': <Quantized int4 (2, 3), 7 bytes>}
    """
    tensors: dict[str, NDArray[Any]] = {}
    described: dict[str, dict[str, Any]] = {}

    def put(name: str, array: NDArray[Any]) -> None:
        if name in tensors:
            raise _core.Error(
                f"arrays: {name!r} would be there twice (a quantized array also takes .scale and .offset)"
            )
        tensors[name] = np.ascontiguousarray(array).reshape(array.shape)

    if not isinstance(arrays, Mapping):
        raise TypeError(f"arrays: expected a mapping of names to arrays, got {type(arrays).__name__}")
    target = _path(path)
    for name, value in arrays.items():
        if not isinstance(name, str):
            raise TypeError(f"arrays: names must be str, got {type(name).__name__}")
        if isinstance(value, Quantized):
            put(name, value.packed)
            put(f"{name}.scale", value.scale)
            if value.offset is not None:
                put(f"{name}.offset", value.offset)
            described[name] = {
                "format": value.format.name,
                "shape": list(value.shape),
                "axis": value.axis,
                "block_size": value.block_size,
                "key_id": None if value.key_id is None else value.key_id.hex(),
            }
        elif isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
            put(name, value)
        else:
            raise TypeError(f"arrays: {name!r} is a {type(value).__name__}, not a Quantized or a numpy.ndarray")
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        save_file(tensors, temporary, {_KEY: json.dumps({"version": _VERSION, "arrays": described}, sort_keys=True)})
        # mkstemp makes a private file; a new file has the rights that the user's umask leaves.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(target)
    except (KeyError, SafetensorError) as error:
        raise TypeError(f"arrays: one has a dtype that safetensors lacks ({error})") from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> dict[str, Quantized | NDArray[Any]]:
    """Read what `save` wrote, or any safetensors file.

    Parameters
    ----------
    path : str or path-like
        The file.

    Returns
    -------
    dict of str to Quantized or numpy.ndarray
        In the order of their names.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    lowbit.DecodeError
        The file is damaged or described in a way that this version does not know.
    """
    if not _path(path).exists():
        raise FileNotFoundError(f"path: there is no file {os.fspath(path)!r}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, NDArray[Any]] = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except SafetensorError as error:
        raise _core.DecodeError(f"cannot decode: {error}") from None
    result: dict[str, Quantized | NDArray[Any]] = dict(tensors)
    if _KEY not in metadata:
        return result
    try:
        description = json.loads(metadata[_KEY])
        if description["version"] != _VERSION:
            raise _core.DecodeError(f"cannot decode: description version {description['version']} is not known")
        for name, about in description["arrays"].items():
            scale, offset = tensors[f"{name}.scale"], tensors.get(f"{name}.offset")
            for part in (f"{name}.scale", f"{name}.offset"):
                result.pop(part, None)
            data = _core.quantized_to_bytes(
                tensors[name],
                scale,
                offset,
                about["format"],
                about["shape"],
                about["axis"],
                about["block_size"],
                None if about["key_id"] is None else bytes.fromhex(about["key_id"]),
            )
            # Reading the container checks everything that a damaged description could get wrong.
            result[name] = Quantized.from_bytes(data)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        if isinstance(error, _core.DecodeError):
            raise
        raise _core.DecodeError(f"cannot decode: the description of the arrays is damaged ({error})") from None
    return result


def _path(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path)
    except TypeError:
        raise TypeError(f"path: expected a str or a path, got {type(path).__name__}") from None
