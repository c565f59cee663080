"""Weights and what an optimizer keeps about them, as ZeRO cuts them up and as a whole.

From stage 1 on the weights of a group lie one behind the other in a flat tensor, of which each
process has a part; the optimizer sees only this part. At stage 3 each weight is cut by itself.
DeepSpeed has functions of its own for this, but none that sets, at stage 3, what has fewer numbers
than there are processes.
"""

from collections.abc import MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from videoclip import distributed


class Part(NamedTuple):
    """What this process has of one weight; it may be nothing."""

    flat: Tensor
    """The tensor that the optimizer changes, in place of many weights."""
    inside: slice
    """Where in it."""
    place: slice
    """Which numbers of the weight."""
    weight: nn.Parameter
    """The weight in the model."""


def parts_of(model: nn.Module, zero: Any) -> dict[str, Part]:
    """By name, this process's part of every weight that is trained under ZeRO's optimizer."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if hasattr(zero, "bit16_groups"):
        find, groups = _at_stage_2, zero.bit16_groups
    else:
        find, groups = _at_stage_3, zero.fp16_groups
    return {
        names[id(weight)]: find(zero, number, weight)
        for number, group in enumerate(groups)
        for weight in group
    }


def _at_stage_2(zero: Any, group: int, weight: nn.Parameter) -> Part:
    flat, found = zero.single_partition_of_fp32_groups[group], weight._hp_mapping
    if found is None:  # all of it lies in other processes
        return Part(flat, slice(0, 0), slice(0, 0), weight)
    inside, place = found.hp_fragment_address, found.lp_fragment_address
    return Part(
        flat,
        slice(inside.start, inside.start + inside.numel),
        slice(place.start, place.start + place.numel),
        weight,
    )


def _at_stage_3(zero: Any, group: int, weight: nn.Parameter) -> Part:
    number, start, size = zero.grad_position[zero.get_param_id(weight)]
    first = size * distributed.rank()
    real = max(0, min(size, weight.ds_numel - first))  # the rest is padding
    flat = zero.fp32_partitioned_groups_flat[number]
    return Part(flat, slice(start, start + real), slice(first, first + real), weight)


def whole(part: Part, values: Tensor) -> Tensor:
    """What stands in `values`, a tensor like `part.flat`, about the whole weight.

    All processes must ask for it together.
    """
    shape = getattr(part.weight, "ds_shape", part.weight.shape)
    found = torch.zeros(shape.numel(), dtype=values.dtype, device=part.weight.device)
    found[part.place] = values[part.inside].to(found.device)
    return distributed.add_up(found).view(shape)


def set_parts(
    parts: dict[str, Part],
    state: MutableMapping[Tensor, dict[str, Tensor]],
    moments: dict[str, dict[str, Tensor]],
) -> None:
    """Makes an optimizer's state that of these moments of whole weights."""
    state.clear()
    for name, part in parts.items():
        for key, value in moments.get(name, {}).items():
            kept = state.setdefault(part.flat, {})
            if key == "step":
                kept[key] = value.to(part.flat.device, copy=True)
                continue
            values = kept.setdefault(key, torch.zeros_like(part.flat))
            values[part.inside] = value.flatten()[part.place].to(values)
