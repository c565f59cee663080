"""A value with tensors -> a file in memory, which another process opens without copying.

Such a file has no name and lies in no folder. Where a process dies the system takes it back.
"""

import io
import mmap
import os
import pickle
import tempfile
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

ALIGNED = 64
"""Tensors begin at multiples of so many bytes."""


def packed(value: Any) -> int:
    """The descriptor of a file in memory that holds a value; its tensors lie there as they are."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    table = np.array([len(parts), *(part.nbytes for part in parts)], dtype=np.int64)
    parts = [memoryview(table).cast("B"), *parts]
    handle = _file()
    with os.fdopen(handle, "wb", closefd=False) as file:
        for start, part in zip(_starts(part.nbytes for part in parts), parts, strict=False):
            file.seek(start)
            file.write(part)
        file.truncate(max(file.tell(), 1))
    return handle


def unpacked(handle: int) -> Any:
    """The value that a file in memory holds; the file goes away with the last of its tensors."""
    try:
        memory = memoryview(mmap.mmap(handle, os.fstat(handle).st_size))
    finally:
        os.close(handle)
    count = int(np.frombuffer(memory, np.int64, 1)[0])
    sizes = np.frombuffer(memory, np.int64, 1 + count)[1:].tolist()
    starts = _starts([8 * (1 + count), *sizes])[1:]
    parts = [memory[start : start + n] for start, n in zip(starts, sizes, strict=False)]
    return pickle.loads(parts[0], buffers=parts[1:])


def pinned(value: Any) -> Any:
    """The same with its tensors in memory from which a GPU takes them while others work."""
    if isinstance(value, Tensor):
        return value.pin_memory()
    if isinstance(value, tuple):
        parts = [pinned(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


class _Pickler(pickle.Pickler):
    """Hands out the memory of tensors instead of copying it."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def _starts(sizes: Iterable[int]) -> list[int]:
    """Where parts of such sizes begin."""
    return list(accumulate((-(-size // ALIGNED) * ALIGNED for size in sizes), initial=0))


def _file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("batch")
    with tempfile.TemporaryFile() as file:  # without a name as well, but on a disk
        return os.dup(file.fileno())
