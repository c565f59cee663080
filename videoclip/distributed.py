"""Several processes as one: who is who, and rows that are gathered with their gradients.

A run minimizes the mean over the processes of the number that each of them takes backward. So a
loss that all compute from gathered embeddings counts once, and so does the temperature in it:
`gather` gives each process the sum of what all of them have to say about its rows, and
`mean_gradients` divides by their number. Nothing is scaled by hand anywhere else.

In one process everything here is the identity.
"""

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from videoclip.errors import OtherProcessError, VideoclipError

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""How long a process waits for the others. The main one may decode a data set alone meanwhile; that
a process has died the launcher and gloo notice in seconds."""
BUCKET = 2**24
"""So many numbers of gradients are sent in one go: many small messages would take longer."""


def start() -> bool:
    """Joins the processes that torchrun or deepspeed has started; False where there are no others.

    Their environment says who this one is: RANK, WORLD_SIZE, LOCAL_RANK. On GPUs they talk by
    NCCL, each with the GPU of its LOCAL_RANK; without GPUs by gloo.

    Raises VideoclipError where there are more processes than GPUs.
    """
    if dist.is_initialized() or "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return world_size() > 1
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        gpus, number = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", 0))
        if number >= gpus:
            raise VideoclipError(
                f"process {number} of this machine has no GPU, there are {gpus}; start as many "
                f"processes as GPUs: --nproc-per-node {gpus}"
            )
        torch.cuda.set_device(number)
    dist.init_process_group("nccl" if has_gpu else "gloo", timeout=PATIENCE)
    atexit.register(stop)
    return world_size() > 1


def start_alone() -> None:
    """Makes a process that no launcher has started the only one of a group.

    Some libraries want a group even then. Where `start` has joined others it does nothing.
    """
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        atexit.register(stop)


def stop() -> None:
    """Leaves the other processes; from here on this one is alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _exchange(operation: Callable[..., Any], *arguments: Any) -> None:
    """What all processes do at once. Raises VideoclipError where one of them is gone."""
    try:
        operation(*arguments)
    except RuntimeError as error:
        raise VideoclipError(
            "another process of this run has ended; its own message, or the launcher's, says why "
            f"({str(error).partition(chr(10))[0]})"
        ) from error


def device() -> torch.device:
    """The GPU of this process, or the processor where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def main_process() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return rank() == 0


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of what all have alike: contiguous, in the order of the ranks.

    The parts differ by at most one in length; gathered they are the whole in its order.
    """
    small, more = divmod(len(items), world_size())
    first = rank() * small + min(rank(), more)
    return items[first : first + small + (rank() < more)]


def gather(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks: (N, ...) -> (sum of N, ...).

    Differentiable: backward, each process gets the sum of all processes' gradients of its rows.
    N may differ between processes and may be 0; the other dimensions are the same everywhere.
    """
    return x if world_size() == 1 else _Gather.apply(x)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows, counts = _all_rows(x)
        ctx.first, ctx.count = sum(counts[: rank()]), len(x)
        return rows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone(memory_format=torch.contiguous_format)
        _exchange(dist.all_reduce, summed)
        return summed[ctx.first : ctx.first + ctx.count]


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all processes, as `gather` gives them, without gradients.

    What a process without rows says about the other dimensions and the type does not matter.
    """
    if world_size() == 1:
        return x
    shapes = gather_objects((len(x), x.shape[1:], x.dtype))
    _, shape, dtype = next((s for s in shapes if s[0]), shapes[0])
    own = x.detach() if len(x) else x.new_zeros(0, *shape, dtype=dtype)
    return _all_rows(own.to(_device()))[0].to(x.device)


def _all_rows(x: Tensor) -> tuple[Tensor, list[int]]:
    """The rows of all processes, and how many each of them gave."""
    own = torch.tensor([len(x)], device=x.device)
    numbers = [torch.empty_like(own) for _ in range(world_size())]
    _exchange(dist.all_gather, numbers, own)
    counts = [int(number) for number in numbers]
    # Backends gather tensors of one shape only.
    padded = torch.cat([x, x.new_zeros(max(counts) - len(x), *x.shape[1:])]).contiguous()
    parts = [torch.empty_like(padded) for _ in counts]
    _exchange(dist.all_gather, parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]), counts


def gather_objects(value: T) -> list[T]:
    """What each process has, in the order of their ranks; anything that can be pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    _exchange(dist.all_gather_object, values, value)
    return values


def agree(wish: bool) -> bool:
    """Whether any process wishes it: the same answer for all, so that none goes on alone."""
    return bool(largest(int(wish)))


def largest(number: int) -> int:
    """The largest of the numbers that the processes give."""
    if world_size() == 1:
        return number
    found = torch.tensor([number], device=_device())
    _exchange(dist.all_reduce, found, dist.ReduceOp.MAX)
    return int(found)


def mean(number: float) -> float:
    """The mean of the numbers that the processes give; not finite where one of them is not."""
    if world_size() == 1:
        return number
    total = torch.tensor([number], dtype=torch.float64, device=_device())
    _exchange(dist.all_reduce, total)
    return float(total) / world_size()


def add_up(x: Tensor) -> Tensor:
    """Makes a tensor the sum of those that the processes have, and returns it."""
    if world_size() > 1:
        _exchange(dist.all_reduce, x)
    return x


def mean_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Every gradient becomes the mean of all processes' gradients, the same in all of them."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for bucket in _buckets(gradients):
        sent = torch.cat([gradient.flatten() for gradient in bucket])
        _exchange(dist.all_reduce, sent)
        sent.div_(world_size())
        parts = sent.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors that are sent in one go: of one type, few numbers in all or a single tensor."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(one.numel() for one in bucket)
        if bucket and (tensor.dtype != bucket[0].dtype or size + tensor.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def start_alike(model: nn.Module) -> None:
    """Every process takes over the weights and buffers of the main one."""
    if world_size() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            _exchange(dist.broadcast, tensor.data, 0)


def mean_statistics(model: nn.Module) -> None:
    """Running averages of batch normalization become the mean of those of all processes.

    Each process normalizes its own rows, so that they differ.
    """
    if world_size() == 1:
        return
    for norm in model.modules():
        if isinstance(norm, _BatchNorm) and norm.training and norm.track_running_stats:
            for average in (norm.running_mean, norm.running_var):
                _exchange(dist.all_reduce, average)
                average.div_(world_size())


@contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """In this context each process draws random numbers of its own, as for dropout.

    Afterwards all have the same state of the generators, if they had so before. One process draws
    on as it would without the context.
    """
    if world_size() == 1:
        yield
        return
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed + rank())
        yield


def on_main(function: Callable[..., T], *arguments: Any) -> T:
    """Calls the function in the main process alone; all wait for it and get what it returned.

    Raises OtherProcessError in the others where it raised an error.
    """
    if world_size() == 1:
        return function(*arguments)
    if not main_process():
        value, error = _told([None, None])
        if error is not None:
            raise OtherProcessError(error)
        return value
    try:
        value = function(*arguments)
    except Exception as error:
        _told([None, str(error)])
        raise
    return _told([value, None])[0]


def _told(message: list[Any]) -> list[Any]:
    """What the main process says to all."""
    _exchange(dist.broadcast_object_list, message)
    return message


def alike(message: str) -> VideoclipError:
    """The error for what all processes find alike, so that only one of them says it."""
    return (VideoclipError if main_process() else OtherProcessError)(message)


def _device() -> torch.device:
    """Where tensors must lie to be sent."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
