"""What the benchmarks share: a machine in words, its peak, FLOPs that torch leaves out, texts."""

import math
import platform
import random
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

from videoclip.layers import linear
from videoclip.prompts import prompts
from videoclip.tokenizer import Tokenizer

PEAK = {"matmul": torch.matmul, "linear": linear}
"""Ways of multiplying large matrices: torch's own, and the one that our layers take, which is
another library's on some machines. The faster is the peak."""
aten = torch.ops.aten
UNCOUNTED = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda *s, **_: sdpa_flop_count(*s[:3]),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *s, **_: sdpa_backward_flop_count(*s[:4])
    ),
    aten.mkldnn_convolution: lambda x, w, *_, out_shape: (
        2 * math.prod(out_shape) * math.prod(w[1:])
    ),
    aten._native_multi_head_attention: (
        lambda x, *_, **__: 4 * math.prod(x) * (2 * x[-1] + x[-2])  # of a shape (B, L, W)
    ),
}
"""What torch's counter of FLOPs leaves out on a CPU."""


def machine(device: str) -> str:
    """The processor with its threads, or the GPU."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    threads = torch.get_num_threads()
    return f"{names[0] if names else platform.machine()}, {threads} thread{'s' * (threads > 1)}"


def versions(*packages: str) -> str:
    """Packages with their versions."""
    return ", ".join(f"{name} {version(name)}" for name in packages)


def sentences(count: int, context_length: int) -> tuple[Tensor, Tensor]:
    """Token ids (count, L) of ImageNet prompts, as they are and with one that fills the context."""
    imagenet, choose = prompts("imagenet"), random.Random(0)
    texts = [
        choose.choice(imagenet.templates).replace("{}", choose.choice(imagenet.classes))
        for _ in range(count)
    ]
    tokenizer = Tokenizer(context_length)
    filled = texts[-1] + " and so on" * context_length  # the tokenizer cuts it
    return tokenizer(texts), tokenizer([*texts[:-1], filled])


def digits(rate: float) -> str:
    """A rate with three digits or more."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """The lines of a table as they stand in a page."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
