"""Real processes for tests: a function runs in several of them, which talk by gloo."""

import os
import socket
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def run(function: Callable[[Any], Any], argument: Any, folder: Path, count: int = 2) -> list[Any]:
    """What `function(argument)` returns in each of `count` processes, in the order of their ranks.

    The function is one of a module, warnings are errors there as in the tests.
    """
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    mp.spawn(_work, (count, port, function, argument, folder), nprocs=count)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def free_port() -> int:
    """A port on which nobody listens yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _work(
    rank: int, count: int, port: int, function: Callable[[Any], Any], argument: Any, folder: Path
) -> None:
    warnings.simplefilter("error")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    from videoclip import distributed

    try:
        distributed.start()
        torch.save(function(argument), folder / f"{rank}.pt")
    except BaseException:
        traceback.print_exc()
        raise
