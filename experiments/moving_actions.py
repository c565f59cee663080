"""Moving shapes, recognition: which of 28 things happens in a clip, whatever its shape and color?

Run: videoclip compare moving_actions       Expect: docs/benchmarks.md (mean stays under 58.3 top-1)

The clips are those of moving_shapes, their labels the ends of its captions ("grows", "turns from
red to blue"). A model that does not know the order of the frames says the same of a clip and of its
reversal, which has another label: so the ceiling is the same as in retrieval. The row x3d is a
video network without CLIP's pre-training and without text: what the rest is worth.
"""

from dataclasses import replace

from experiments import moving_shapes
from experiments.moving_shapes import ceiling, prepare
from videoclip.experiment import Row
from videoclip.tasks import Recognition
from videoclip.towers import Labels, Network

__all__ = ["base", "ceiling", "prepare", "rows"]

base = replace(
    moving_shapes.base,
    task=Recognition(templates=("a shape {}",)),
    finetune=replace(moving_shapes.base.finetune, loss="kl"),
)

rows = {
    **moving_shapes.rows,
    "x3d": Row(visual=Network(family="x3d", frames=4, image_size=32, width=0.25), text=Labels()),
}
