"""The same work on many machines: Ray Data hands clips to whoever has room and survives who dies.

    decode (tasks) -> embed (actors, each with the tower, on a GPU where there are any)
    decode and pack (tasks)

All machines must see the videos under the same paths. What comes back is kept by the one process
that asked for it, as if that had done the work itself: the result is the same, and after a kill the
same command does only what is missing.
"""

import logging
import pickle
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from videoclip.errors import VideoclipError
from videoclip.features.store import FeatureStore, Shown, embed
from videoclip.frames.apart import Apart
from videoclip.frames.pack import PROGRAM, Packer
from videoclip.frames.pack_journal import Row
from videoclip.frames.views import Views
from videoclip.manifest import Clip
from videoclip.model import VideoCLIP

AT_ONCE = 8
"""Items that travel together; those that are lost travel alone the second time."""
TRIES = 3
"""So often an item is tried again whose process or machine dies."""
DIED = "every process of the cluster that read it died"
SHARE = 0.5
"""Of a processor, that a task or an actor asks for: so a machine with one has room for both."""


class Stage(NamedTuple):
    """A part of the work: what it makes of an item."""

    work: Callable[[Any], Any]
    """Anything that can be pickled and called; it goes to every process that does this part."""
    stays: bool = False
    """Whether processes keep it, because it is large: actors instead of tasks."""
    gpu: bool = False
    """Whether a process takes a GPU, where the cluster has any."""


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Within it this process belongs to a Ray cluster; `local` starts one on this machine.

    Raises VideoclipError where Ray is not installed or no cluster answers.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise VideoclipError(
            f"Ray is not installed ({error}); pip install 'videoclip[ray]'"
        ) from error
    try:
        ray.init(
            address=None if address == "local" else address, logging_level=logging.ERROR,
            log_to_driver=False, configure_logging=False, include_dashboard=False
            if address == "local" else None,
        )  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise VideoclipError(f"no Ray cluster answers at {address}: {error}") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # there is one here
    context.max_errored_blocks = -1  # what is lost is tried again, and listed
    try:
        yield
    finally:
        ray.shutdown()


def fill(
    store: FeatureStore, model: VideoCLIP, clips: Sequence[Clip], kept: int | Views, label: str
) -> list[Clip]:
    """As `FeatureStore.fill`, by the cluster that this process has joined."""
    wanted = store.missing(clips, kept)
    rest = {key: of[0] for key, of in wanted.items() if key not in store.shards}
    stages = (
        Stage(_Decode(store.alone(), kept)),
        Stage(_Embed(model, store.look.dtype), stays=True, gpu=True),
    )
    store.keep(spread(rest, stages, f"embedding {label}", unit="clip"), wanted)
    return [clip for clip in clips if clip.video_id not in store.unreadable]


class _Decode(NamedTuple):
    store: FeatureStore
    kept: int | Views

    def __call__(self, clip: Clip) -> Tensor | str:
        return Shown(self.store, [clip], self.kept).read(0, lambda name: None, {})


class _Embed(NamedTuple):
    model: VideoCLIP
    dtype: torch.dtype

    def __call__(self, shown: Tensor | str) -> Tensor | str:
        return shown if isinstance(shown, str) else embed(self.model, shown).to(self.dtype)


def pack(packer: Packer, paths: Sequence[Path]) -> Iterator[tuple[Path, Row]]:
    """The rows of files that the cluster packs into the store's folder; see `frames.pack`."""
    items = {str(number): path.absolute() for number, path in enumerate(paths)}
    packer = packer._replace(store=packer.store.absolute())
    for key, row in spread(items, [Stage(_Pack(packer), stays=True)], "", unit="file"):
        path = paths[int(key)]
        yield path, packer.lost(path, row) if isinstance(row, str) else row


class _Pack:
    """Keeps the process that opens the files."""

    def __init__(self, packer: Packer) -> None:
        self.packer, self.apart = packer, None

    def __call__(self, path: Path) -> Row | None:
        if self.apart is None:
            limits = self.packer.limits
            self.apart = Apart(PROGRAM, limits._asdict(), threading.Event(), timeout=limits.timeout)
        return self.packer.pack(path, self.apart)


def spread(
    items: Mapping[str, Any], stages: Sequence[Stage], label: str, *, unit: str
) -> Iterator[tuple[str, Any]]:
    """What the stages make of every item, by its key, in the order in which it is done.

    Processes and machines that die are replaced, and their items tried again. An item whose
    processes die every time comes back as a text that says so. Without a label there is no bar.

    Raises VideoclipError where a stage does, and where all items are lost so.
    """
    rest = dict(items)
    with tqdm(total=len(rest), desc=label, unit=unit, disable=not rest or not label) as bar:
        for at_once in (AT_ONCE, 1):
            for key, value in _passed(rest, stages, at_once):
                if rest.pop(key, None) is not None:
                    bar.update()
                    yield key, value
        if len(rest) == len(items) > 1:
            raise VideoclipError(
                "the cluster has lost every process that it started, so it is not the items; see "
                "whether its machines have memory left, and run the same command again"
            )
        for key in rest:
            yield key, DIED


def _passed(
    items: Mapping[str, Any], stages: Sequence[Stage], at_once: int
) -> Iterator[tuple[str, Any]]:
    if not items:
        return
    import ray

    rows = [{"key": key, "value": pickle.dumps(item)} for key, item in items.items()]
    data = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // at_once))
    has = ray.cluster_resources()
    for stage in stages:
        gpus = 1 if stage.gpu and has.get("GPU") else 0
        room = {"num_cpus": SHARE, "num_gpus": gpus}
        if stage.stays:
            data = data.map(
                _Actor, fn_constructor_args=([ray.put(stage.work)],), **room,
                concurrency=(1, max(1, int(has["GPU"] if gpus else has.get("CPU", 1)))),
                max_restarts=-1, max_task_retries=TRIES,
            )  # fmt: skip
        else:
            data = data.map(_task, fn_args=(stage.work,), **room, max_retries=TRIES)
    for row in data.iter_rows():
        value = pickle.loads(row["value"])
        if isinstance(value, VideoclipError):
            raise value
        yield row["key"], value


def _task(row: dict[str, Any], work: Callable[[Any], Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    value = pickle.loads(row["value"])
    if not isinstance(value, VideoclipError):  # which an earlier stage raised
        try:
            value = work(value)
        except VideoclipError as error:
            value = error
        except Exception:
            value = VideoclipError(f"work on the cluster failed:\n{traceback.format_exc()}")
    return {"key": row["key"], "value": pickle.dumps(value)}


class _Actor:
    """A process that keeps what it works with."""

    def __init__(self, work: list[Any]) -> None:
        import ray

        [self.work] = ray.get(work)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return _task(row, self.work)
