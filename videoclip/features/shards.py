"""Named tensors in a folder, a file for many of them: a kill costs the file that was begun.

A shard is a safetensors file: its header is the index of what it holds, and a tensor is read
without the others. It gets its name when it is complete, a name that no other process gives; so
any number of processes and machines may write into one folder at once.
"""

import functools
import uuid
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from videoclip.errors import VideoclipError

SHARD = ".safetensors"
OPEN = 256
"""Shards that are kept open."""


def write_shard(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Writes a new shard. Raises VideoclipError where the disk does not take it."""
    path = folder / f"{uuid.uuid4().hex}{SHARD}"
    unfinished = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: x.contiguous() for name, x in tensors.items()}, unfinished)
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        unfinished.unlink(missing_ok=True)
        raise VideoclipError(
            f"cannot keep features in {folder}: {error}; free some space or keep them elsewhere "
            "with --run.features"
        ) from error
    return path


def shards_of(folder: Path) -> list[Path]:
    """The shards of a folder. A damaged one is told and passed by; what it held is made again."""
    found = []
    for path in sorted(folder.glob(f"*{SHARD}")):
        try:
            opened(path)
        except (OSError, SafetensorError) as error:
            tqdm.write(f"{path} is damaged ({error}); its features are made again")
        else:
            found.append(path)
    return found


@functools.lru_cache(maxsize=OPEN)
def opened(path: Path) -> safe_open:
    """A shard, kept open: a complete one never changes."""
    return safe_open(path, framework="pt")
