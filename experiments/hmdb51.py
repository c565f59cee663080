"""HMDB51, recognition: ActionCLIP fine-tuned, and few clips a class.

Make the manifest: videoclip data prepare hmdb51 ...           (docs/data.md)
Run:    videoclip train hmdb51.full --data hmdb51-split1.jsonl --checkpoint KINETICS_RUN/model
        videoclip train hmdb51.full --data hmdb51-split1.jsonl --checkpoint ViT-B/16 --task.shots 4
Expect: the figure of the row; not run here. Zero-shot needs no training: videoclip evaluate
        recognition KINETICS_RUN/model --protocol zs-splits3 --data split1 split2 split3
        (published there: X-CLIP 44.6 ± 5.2, ViFi-CLIP 51.3, ActionCLIP's mean 40.8 ± 5.4).

Published few-shot figures with B/16, K = 2/4/8/16: X-CLIP 53.0/57.3/62.8/64.0, ViFi-CLIP
57.2/62.7/64.5/66.8, TC-CLIP 57.3/62.3/67.3/68.6.
"""

from dataclasses import replace

from experiments import ucf101
from experiments.kinetics400 import b16, head
from videoclip.experiment import Row

base = replace(ucf101.base, finetune=replace(ucf101.base.finetune, batch_size=64))

rows = {
    "full": Row(
        head=head, visual=b16, frames=32, published="76.2 (ActionCLIP, from Kinetics-400 weights)"
    ),
}
