"""All randomness of data is a pure function of what it is for: (seed, epoch, sample, purpose).

So results do not depend on the number of workers, on the world size or on where a run was
interrupted, and Python's own salted hash plays no part.
"""

import hashlib

import numpy as np


def generator(*key: int | str) -> np.random.Generator:
    """A random generator that depends on the key alone, e.g. `generator(seed, epoch, video_id)`."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
