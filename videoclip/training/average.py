"""Weights -> their moving average, which is often better than the weights of any one step."""

from collections.abc import Collection
from typing import Optional

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from videoclip import distributed
from videoclip.experiment import Optim


class Average:
    """The exponential moving average of what is trained, in float32 at least.

    It begins with the weights as they are, and torch's own rule moves it. Each process averages
    what it holds of a weight: all of it, or under ZeRO's stage 3 its part.
    """

    def __init__(self, model: nn.Module, decay: float, scalars: Collection[str] = ()) -> None:
        """`scalars` are parameters without dimensions, which may be vectors for the time being."""
        self._move = get_ema_multi_avg_fn(decay)
        self._scalars = set(scalars)
        self._trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._averages = {name: _held(p).clone() for name, p in self._trained.items()}

    @classmethod
    def of(
        cls, model: nn.Module, optim: Optim, scalars: Collection[str] = ()
    ) -> Optional["Average"]:
        """The one that the settings ask for."""
        return None if optim.ema is None else cls(model, optim.ema, scalars)

    def update(self) -> None:
        """One step further."""
        self._move([*self._averages.values()], [_held(p) for p in self._trained.values()], None)

    def weights(self) -> dict[str, Tensor]:
        """Copies of the whole averages, as the model's state calls them.

        Where the weights lie in parts all processes must ask for them together.
        """
        return {name: self._whole(name) for name in self._trained}

    def _whole(self, name: str) -> Tensor:
        weight, average = self._trained[name], self._averages[name]
        if hasattr(weight, "ds_tensor"):
            parts = distributed.gather_rows(average.flatten())
            whole = parts[: weight.ds_numel].view(weight.ds_shape)
        else:
            whole = average.clone()
        return whole.reshape(()) if name in self._scalars else whole

    def restore(self, weights: dict[str, Tensor]) -> None:
        """Goes on from what `weights` gave."""
        for name, average in self._averages.items():
            values = weights[name].flatten().to(average)
            if hasattr(self._trained[name], "ds_tensor"):
                first = distributed.rank() * average.numel()
                values = values[first : first + average.numel()]
            average.zero_().flatten()[: len(values)] = values  # behind the last part is padding


def _held(weight: nn.Parameter) -> Tensor:
    """What this process has of a weight, where ZeRO's stage 3 keeps it or as a whole."""
    held = getattr(weight, "ds_tensor", weight).detach()
    return held.to(torch.promote_types(held.dtype, torch.float32))
