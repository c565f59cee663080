"""What the tests of stores and loaders share: some clips, and what an epoch of them is."""

from collections.abc import Callable
from typing import Any

import clips as files
import pytest

from videoclip.frames.loader import Loader
from videoclip.frames.store import FrameStore
from videoclip.manifest import Clip
from videoclip.tasks import Retrieval
from videoclip.tokenizer import Tokenizer
from videoclip.types import Batch


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("videos")
    made = []
    for number, frames in enumerate([12, 5, 30, 3, 12, 12, 12]):
        path = folder / f"{number}.mp4"
        files.write_video(path, files.pattern(frames, width=48, height=32))
        made.append(Clip(f"v{number}", path, (f"caption {number}", f"another {number}")))
    return made


@pytest.fixture(scope="session")
def one_epoch() -> Callable[..., list[Batch]]:
    """The batches of an epoch: (clips, store, seed, epoch, **options of Loader)."""

    def drawn(
        clips: list[Clip],
        store: FrameStore,
        seed: int,
        epoch: int,
        *,
        start: int = 0,
        **options: Any,
    ) -> list[Batch]:
        settings = {"takes": 3, "crop": 0.5, "size": 16, "texts": Retrieval().texts} | options
        loader = Loader(clips, store, Tokenizer(16), batch_size=3, seed=seed, **settings)
        try:
            return list(loader.epoch(epoch, start))
        finally:
            loader.close()

    return drawn
