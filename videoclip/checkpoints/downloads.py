"""Address -> verified file, and the hub's name -> folder."""

import contextlib
import hashlib
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import huggingface_hub
from filelock import FileLock
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from tqdm import tqdm

from videoclip.checkpoints import hugging_face
from videoclip.checkpoints.clip_checkpoints import OPEN_CLIP, OPEN_CLIP_WEIGHTS
from videoclip.errors import WeightsError

CHUNK = 1 << 20
SECONDS = 30
"""How long a server may be silent."""
OURS, OUR_SLOTS = "videoclip.json", "videoclip.safetensors"
"""The files that only `save_pretrained` of this project writes."""
BESIDE = {*hugging_face.PROCESSORS, OURS, OUR_SLOTS, OPEN_CLIP}
"""The files that most models of the hub have none of."""


def sha256(path: Path) -> str:
    """The checksum of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(address: str, path: Path, checksum: str, size: int | None = None) -> None:
    """Downloads a file, going on where an earlier attempt stopped, and verifies its SHA-256.

    What is unfinished is called `NAME.part`; only what is verified gets the name. Where the size is
    known no more is taken. Processes that want the same file wait for the first. Raises
    WeightsError, saying where to put the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock")):
            if path.is_file():
                return  # another process was faster
            part = path.with_name(path.name + ".part")
            _fill(part, address, size)
            if (actual := sha256(part)) != checksum:
                part.unlink()
                raise WeightsError(
                    f"what {address} sent has the SHA-256 {actual}, expected {checksum}; it was "
                    "deleted; try again, or find out who stands between you and the server"
                )
            part.replace(path)
    except (OSError, HTTPException) as error:  # urllib's own are of the first kind
        raise WeightsError(
            f"{address} cannot be downloaded ({error}); where it can, download it and put it at "
            f"{path}"
        ) from error


def _fill(part: Path, address: str, size: int | None) -> None:
    have = part.stat().st_size if part.is_file() else 0
    if have == size:
        return
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send: the checksum tells whether that is right
            return
        raise
    with answer:
        goes_on = answer.status == 206
        have = have if goes_on else 0
        rest = answer.headers.get("Content-Length")
        total = have + int(rest) if rest else None
        bar = tqdm(desc=part.stem, initial=have, total=total, unit="B", unit_scale=True)
        with bar, part.open("ab" if goes_on else "wb") as file:
            while chunk := answer.read(CHUNK):
                have += len(chunk)
                if size is not None and have > size:
                    part.unlink()
                    raise WeightsError(
                        f"{address} sends more than the {size:,} bytes that were published; what "
                        "came was deleted; find out who stands between you and the server"
                    )
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and part.stat().st_size != total:
        raise OSError(f"the connection ended after {part.stat().st_size} of {total} bytes")


def hub_folder(name: str) -> Path:
    """The folder of a model of the Hugging Face hub, such as openai/clip-vit-base-patch32.

    What the hub's cache holds is used without asking the network, as long as nothing that belongs
    to the model can be missing there. Raises WeightsError, saying where to put the files.
    """
    cached, unknown = None, []

    def kept(file: str) -> Path | None:
        found = huggingface_hub.try_to_load_from_cache(name, file)
        if found is None:
            unknown.append(file)
        return Path(found) if isinstance(found, str) else None  # else it is known not to be there

    def fetched(file: str) -> Path | None:
        try:
            return Path(huggingface_hub.hf_hub_download(name, file))
        except LocalEntryNotFoundError:
            raise  # not known to be missing: the network is
        except EntryNotFoundError:
            return None

    try:
        cached = _gather(kept)
        unknown = [f for f in unknown if f not in (*hugging_face.NAMES, *OPEN_CLIP_WEIGHTS)]
        if cached and not unknown:
            return cached
        _ask(name)
        if folder := _gather(fetched):
            return folder
        reason = "there are no weights of a kind that is read here"
    except WeightsError:
        raise
    except Exception as error:  # the hub's library lets errors of its own libraries through
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if cached and {*unknown} <= BESIDE:
        # Other programs keep the weights alone, and most models have OpenAI's constants.
        tqdm.write(
            f"{name} is taken from the hub's cache as if {', '.join(unknown)} were not a part of "
            f"it; the hub cannot be asked ({reason})",
            file=sys.stderr,
        )
        return cached
    raise WeightsError(
        f"{name} is no file or folder here and cannot be had from the Hugging Face hub ({reason}); "
        f"where it can, download its {hugging_face.CONFIG}, {hugging_face.PROCESSORS[0]} and "
        f"{hugging_face.WEIGHTS} into one folder and give that folder"
    )


def _ask(name: str) -> None:
    """Asks the hub for one file, once: where there is no network its downloads retry for long."""
    address = huggingface_hub.hf_hub_url(name, hugging_face.CONFIG)
    with contextlib.suppress(EntryNotFoundError):
        huggingface_hub.get_hf_file_metadata(address)


def _gather(get: Callable[[str], Path | None]) -> Path | None:
    """Has every file of a model got, and returns their folder; None without weights we can read."""
    for file in (*hugging_face.PROCESSORS, OUR_SLOTS):
        get(file)
    config, weights = get(hugging_face.CONFIG), hugging_face.NAMES
    if get(OURS) is None and not (config and hugging_face.is_clip(config)):
        if get(OPEN_CLIP) is None:
            return None
        weights = OPEN_CLIP_WEIGHTS
    for file in weights:
        if path := get(file):
            if path.name.endswith(".index.json"):
                for part in hugging_face.parts(path):
                    get(part.name)
            return path.parent
    return None
