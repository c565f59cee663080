"""Moving shapes: can a temporal module tell left-to-right from right-to-left?

Run: videoclip compare moving_shapes        Expect: docs/benchmarks.md (mean stays under 58.3 R@1)
"""

import json
from dataclasses import replace
from pathlib import Path

from data_prep.moving_shapes import generate, order_blind_ceiling
from videoclip.experiment import Data, Experiment, Optim, Row
from videoclip.heads import LSTM, ClassToken, Convolution, Mean, Transformer
from videoclip.mixers import Joint, Shift
from videoclip.model import Model
from videoclip.scorers import Tight
from videoclip.towers import Text, ViT

base = Experiment(
    model=Model(
        visual=ViT(width=64, layers=3, patch_size=8, image_size=32),
        text=Text(width=64, layers=2, context_length=32),
        embedding=64,
    ),
    data=Data(frames=4, words=32, crop=1.0),  # a crop would move what the captions are about
    # float32, because most CPUs are slow in bfloat16
    pretrain=Optim(
        epochs=16, batch_size=100, tower_rate=1e-3, weight_decay=0.1, precision="fp32"
    ),
    finetune=Optim(
        epochs=8, batch_size=40, tower_rate=3e-4, module_rate=6e-3, weight_decay=0.1,
        precision="fp32",
    ),
)  # fmt: skip

rows = {
    "mean": Row(head=Mean()),
    "lstm": Row(head=LSTM()),
    "transformer": Row(head=Transformer(layers=2)),
    "tight": Row(scorer=Tight(layers=2, dropout=0.0)),
    "shift": Row(mixer=Shift()),
    "joint": Row(mixer=Joint()),
    "convolution": Row(head=Convolution()),
    "class_token": Row(head=ClassToken(layers=2)),
}


def prepare(experiment: Experiment, folder: Path) -> Experiment:
    """Generates the clips and images into a folder, once."""
    manifest = generate(folder, clips_per_caption=16, images=8000)
    images = manifest.with_name("images.jsonl")
    return replace(experiment, data=replace(experiment.data, manifest=manifest, images=images))


def ceiling(experiment: Experiment) -> dict[str, float | str]:
    """The R@1 in percent that no order-blind model can expect to exceed."""
    rows = [json.loads(line) for line in experiment.data.manifest.read_text().splitlines()]
    blind = order_blind_ceiling([row for row in rows if row["split"] == "test"])
    return {"label": "order-blind ceiling", "value": 100 * blind}
