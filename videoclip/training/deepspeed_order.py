"""Gradients in one order for all processes, where DeepSpeed takes them as they come.

From stage 2 on it puts each gradient into a bucket when the backward pass has it, and adds the
buckets of all processes up, place by place. But where a layer has several weights, which of their
gradients comes first depends on the sizes of the tensors around: with clips of other lengths in
another process a weight can meet a bias there, and both get a wrong gradient without a word.
"""

from typing import Any

from torch import nn


class InOrder:
    """What stands between the backward pass and the buckets of ZeRO's optimizer.

    The gradients of one module come one behind the other, in any order; they are held back until
    those of the next module come, and go on in the order of their names.
    """

    def __init__(self, model: nn.Module, zero: Any) -> None:
        names = [name for name, _ in model.named_parameters()]
        self._places = {id(p): place for place, p in enumerate(model.parameters())}
        self._owners = [name.rpartition(".")[0] for name in names]
        self._held: list[tuple[Any, ...]] = []
        self._reduce = zero.reduce_independent_p_g_buckets_and_remove_grads
        self._finish = zero.independent_gradient_partition_epilogue
        zero.reduce_independent_p_g_buckets_and_remove_grads = self._hold
        zero.independent_gradient_partition_epilogue = self._end

    def clear(self) -> None:
        """Forgets what a backward pass that failed has left."""
        self._held.clear()

    def _place(self, arrived: tuple[Any, ...]) -> int:
        return self._places[id(arrived[0])]

    def _hold(self, *arrived: Any) -> None:
        owners = self._owners
        if self._held and owners[self._place(self._held[-1])] != owners[self._place(arrived)]:
            self._pass_on()
        self._held.append(arrived)

    def _pass_on(self) -> None:
        for arrived in sorted(self._held, key=self._place):
            self._reduce(*arrived)
        self._held.clear()

    def _end(self) -> None:
        self._pass_on()
        self._finish()
