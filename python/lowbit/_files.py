"""Save and load named arrays, quantized or not, as safetensors files."""

from __future__ import annotations

import importlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors
from safetensors.numpy import save_file

from lowbit import _core
from lowbit._quantized import Quantized

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The metadata key under which quantized arrays are described, and the description's version.
_KEY, _VERSION = "lowbit", 1


def save(path: str | os.PathLike[str], arrays: Mapping[str, Quantized | NDArray[Any]]) -> None:
    """Write named arrays to a safetensors file; the file appears whole or not at all.

    A link is followed: the file that it points to is replaced.

    Parameters
    ----------
    path : str or path-like
        Where to write.
    arrays : mapping of str to Quantized or numpy.ndarray
        A Quantized is stored as its packed codes (U8, under its name), ``name.scale`` and ``name.offset``, and
        described in the metadata under ``lowbit``; plain arrays as they are. Both names are a Quantized's own, even
        where it has no offset.

    Raises
    ------
    TypeError
        A name is not a str, or a value neither a Quantized nor an array that safetensors can hold.
    lowbit.Error
        Two things would have the same name, or a name is not one that a file can hold.
    OSError
        The file cannot be written.

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
        try:
            # No numbers, but the dtype: what safetensors lacks is told with the array's name, before a file is there.
            to_safetensors({name: np.empty(0, array.dtype)})
        except (KeyError, SafetensorError) as error:
            raise TypeError(f"arrays: {name!r} has dtype {array.dtype}, which safetensors lacks ({error})") from None
        tensors[name] = np.ascontiguousarray(array).reshape(array.shape)

    if not isinstance(arrays, Mapping):
        raise TypeError(f"arrays: expected a mapping of names to arrays, got {type(arrays).__name__}")
    target = Path(os.path.realpath(_path(path)))
    _check_names(arrays)
    for name, value in arrays.items():
        if isinstance(value, Quantized):
            put(name, value.packed)
            put(f"{name}.scale", value.scale if value.scale_codes is None else value.scale_codes)
            if value.offset is not None:
                put(f"{name}.offset", value.offset)
            described[name] = {
                "format": value.format.name,
                "shape": list(value.shape),
                "axis": value.axis,
                "block_size": value.block_size,
                "key_id": None if value.key_id is None else value.key_id.hex(),
            }
            if value.tensor_scale is not None:
                # The shortest decimal that float64 reads back is float32's own number.
                described[name]["tensor_scale"] = float(value.tensor_scale)
        elif isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
            put(name, value)
        else:
            raise TypeError(f"arrays: {name!r} is a {type(value).__name__}, not a Quantized or a numpy.ndarray")
    # A short name of its own: the target's may already be as long as the file system takes.
    temporary = target.with_name(f".lowbit-{secrets.token_hex(8)}")
    try:
        # Made here, so that it has the rights that the user's umask leaves; some versions of safetensors put a private
        # file in its place.
        with temporary.open("xb") as file:
            rights = os.fstat(file.fileno()).st_mode & 0o777
        save_file(tensors, temporary, {_KEY: json.dumps({"version": _VERSION, "arrays": described}, sort_keys=True)})
        temporary.chmod(rights)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    except SafetensorError as error:
        raise OSError(f"path: {os.fspath(path)!r} cannot be written ({error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def _check_names(arrays: Mapping[Any, Any]) -> None:
    """Refuse names that a file cannot hold or that two things would have."""
    for name, value in arrays.items():
        if not isinstance(name, str):
            raise TypeError(f"arrays: names must be str, got {type(name).__name__}")
        if name == "__metadata__":
            raise _core.Error(f"arrays: {name!r} is safetensors' own name; give another")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise _core.Error(
                f"arrays: the name {name!r} has a lone surrogate, which is no UTF-8; give another"
            ) from None
        if not isinstance(value, Quantized):
            continue
        for part in (f"{name}.scale", f"{name}.offset"):
            if part in arrays:
                raise _core.Error(f"arrays: {part!r} is a name that the quantized {name!r} takes for itself")


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
    lowbit.Error
        An array has a dtype (bfloat16, 8-bit floats) for which NumPy needs the package ml_dtypes.

    Examples
    --------
    >>> import numpy as np, lowbit as lb, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> lb.save(path, {"w": lb.quantize(np.float32([1, -2, 3.5]), "int4")})
    >>> np.asarray(lb.load(path)["w"])
    array([ 1. , -2. ,  3.5], dtype=float32)
    """
    if not _path(path).exists():
        raise FileNotFoundError(f"path: there is no file {os.fspath(path)!r}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: _tensor(file, name) for name in sorted(file.keys())}
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
            key_id = None if about["key_id"] is None else bytes.fromhex(about["key_id"])
            result[name] = Quantized(
                tensors[name],
                scale,
                offset,
                about.get("tensor_scale"),
                about["format"],
                about["shape"],
                about["axis"],
                about["block_size"],
                key_id,
            )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, _core.DecodeError):
            raise
        raise _core.DecodeError(f"cannot decode: the description of the arrays is damaged ({error})") from None
    return result


def _tensor(file: Any, name: str) -> NDArray[Any]:
    """Read a tensor; NumPy knows some dtypes only once ml_dtypes has been imported."""
    try:
        return file.get_tensor(name)  # type: ignore[no-any-return]
    except (TypeError, AttributeError):
        dtype = file.get_slice(name).get_dtype()
    try:
        importlib.import_module("ml_dtypes")
    except ImportError:
        reason = f"{name!r} has dtype {dtype}, for which NumPy needs ml_dtypes: pip install ml_dtypes"
        raise _core.Error(f"path: {reason}") from None
    return file.get_tensor(name)  # type: ignore[no-any-return]


def _path(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path)
    except TypeError:
        raise TypeError(f"path: expected a str or a path, got {type(path).__name__}") from None
