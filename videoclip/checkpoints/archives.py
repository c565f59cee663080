"""File -> tensors, whatever wrote it, and nothing that is read is executed.

Three kinds of file hold released weights: safetensors, what `torch.save` writes (a pickle, read by
torch's own restricted reader), and TorchScript archives, OpenAI's `.pt` files. The last are read
here: a zip with a pickle of the module tree and one raw file per storage. Pickles name the
functions they want called; these may name what tensors need, and nothing else.
"""

import collections
import io
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from videoclip.errors import WeightsError
from videoclip.layers import Activation

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
SLACK = 1 << 26
"""Bytes that a zip may grow by when it is unpacked. Weights are not compressed; programs are."""
MODULES = 10_000
"""The largest model released has a fifth of that; a tree that refers to itself has no end."""
LISTS = {"build_intlist", "build_doublelist", "build_boollist", "build_tensorlist"}


class Unread:
    """Stands for what trainings save beside the weights and no model needs; it takes in anything.

    Of what a pickle asks for under one of these names nothing is imported or called.
    """

    def __new__(cls, *_: Any) -> "Unread":
        """An empty one."""
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        """Takes what the other would be made of."""

    def __setstate__(self, _: Any) -> None:
        """Takes what the other would hold."""


ARRAYS = ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
HARMLESS = [
    (Unread, name)
    for name in (
        *(f"numpy.{core}.{function}" for core in ("core", "_core") for function in ARRAYS),
        "numpy.dtype", "numpy.ndarray", "argparse.Namespace", "dotmap.DotMap", "pathlib.PosixPath",
        "mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "yacs.config.CfgNode",
    )
]  # fmt: skip
"""The best accuracy as numpy's number, the options of the command line, mmengine's losses."""


def read(path: Path) -> dict[str, Any]:
    """What a file of weights holds by name, tensors on the CPU in the type they were written in.

    Raises WeightsError for a damaged file and for one that asks for anything but data.
    """
    try:
        _refuse_bomb(path)
        if is_torchscript(path):
            return _torchscript(path)
        with path.open("rb") as file:
            start = file.read(9)
        if path.suffix == ".safetensors" or start[8:] == b"{":
            # Copied out of the mapped file: kernels round differently where memory is not aligned.
            return {key: value.clone() for key, value in load_file(path).items()}
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")  # what follows is tensors or one clear error
            found = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # a hostile file can raise anything
        raise WeightsError(_reason(path, error)) from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path} holds a {type(found).__name__}; expected tensors by name")
    return found


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI's are."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def program_activation(path: Path) -> Activation | None:
    """The activation that the program inside a TorchScript archive runs; it is only looked at.

    None where that cannot be told.
    """
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".py")]
        program = b"".join(map(archive.read, names))
    exact, quick = b"torch.gelu(" in program, re.search(rb"torch\.(sigmoid|silu)_?\(", program)
    if exact == bool(quick):
        return None
    return "gelu" if exact else "quick_gelu"


def _refuse_bomb(path: Path) -> None:
    """Raises WeightsError for a small zip that becomes a large one, whoever will unpack it."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > (packed := path.stat().st_size) + SLACK:
        raise WeightsError(
            f"{path} is refused: its {packed:,} bytes unpack to {unpacked:,}, and weights are not "
            "compressed; get it from its publisher"
        )


def _reason(path: Path, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, pickle.UnpicklingError):
        asked = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        if asked:
            return _refused(path, asked[1])
    # Other errors of a pickle name its bytes, or advise to switch torch's protection off.
    telling = isinstance(error, OSError | ValueError | RuntimeError | SafetensorError)
    detail = f" ({lines[0]})" if telling and lines else ""
    if path.is_file() and not path.stat().st_size:
        detail = " (it is empty)"
    return f"{path} is damaged, or no file of weights{detail}; get it again"


def _refused(path: Path, name: str) -> str:
    return (
        f"{path} is refused: it asks for {name!r}, and weights need nothing but tensors; nothing "
        "was executed. Get the weights from their publisher, as safetensors where there are any"
    )


class _Module:
    """Stands for any module of a TorchScript archive; its attributes are what was pickled."""


class _Unpickler(pickle._Unpickler):
    """Reads the pickle of a TorchScript archive and refuses every global that it need not have.

    It is the one written in Python: that in C makes room for as many objects as a pickle claims to
    hold. What `find_class` returns is made anew for every file: a pickle may set attributes on it.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(root + "data.pkl")))
        self.path, self.archive, self.root = path, archive, root
        self.storages: dict[str, Tensor] = {}
        self.modules: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a global, or WeightsError."""
        if module == "__torch__" or module.startswith("__torch__."):
            return self.modules.setdefault(f"{module}.{name}", type("Module", (_Module,), {}))
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _fresh(_tensor),
            ("torch.jit._pickle", "restore_type_tag"): _fresh(lambda value, tag: value),
            ("torch", "device"): _fresh(lambda *name: name),
        }
        known |= {("torch", storage): dtype for storage, dtype in STORAGES.items()}
        known |= {("torch.jit._pickle", name): _fresh(list) for name in LISTS}
        if (module, name) not in known:
            raise WeightsError(_refused(self.path, f"{module}.{name}"))
        return known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        """The storage that ('storage', type, key, device, length) stands for, one-dimensional."""
        _, dtype, key, _, length = pid
        if key not in self.storages:
            raw = bytearray(self.archive.read(f"{self.root}data/{key}"))
            if len(raw) != (size := length * dtype.itemsize):
                raise ValueError(f"data/{key} has {len(raw)} bytes, expected {size}")
            self.storages[key] = (
                torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            )
        return self.storages[key]


def _fresh(function: Callable) -> Callable:
    return lambda *arguments: function(*arguments)


def _tensor(storage: Tensor, offset: int, shape: tuple, stride: tuple, *_: Any) -> Tensor:
    if math.prod(shape) > len(storage):
        raise ValueError(f"a tensor of shape {shape} is larger than its storage")
    return storage.as_strided(shape, stride, offset)


def _torchscript(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        [pickled] = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
        root = pickled.removesuffix("data.pkl")
        if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") == b"big":
            raise ValueError("its numbers are big-endian")
        tree = _Unpickler(path, archive, root).load()
    if not isinstance(tree, _Module):
        raise ValueError("it holds no module")
    found: dict[str, Tensor] = {}
    modules = [("", tree)]
    for prefix, module in modules:  # which grows on the way
        if len(modules) > MODULES:
            raise ValueError(f"it holds more than {MODULES} modules")
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                found[prefix + name] = value
            elif isinstance(value, _Module):
                modules.append((f"{prefix}{name}.", value))
    return found
