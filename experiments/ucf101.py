"""UCF101, recognition: ActionCLIP fine-tuned, and few clips a class.

Make the manifest: videoclip data prepare ucf101 ...           (docs/data.md)
Run:    videoclip train ucf101.full --data ucf101-split1.jsonl --checkpoint KINETICS_RUN/model
        videoclip train ucf101.full --data ucf101-split1.jsonl --checkpoint ViT-B/16 --task.shots 4
Expect: the figure of the row; not run here. Zero-shot needs no training: videoclip evaluate
        recognition KINETICS_RUN/model --protocol zs-splits3 --data split1 split2 split3
        (published there: X-CLIP 72.0 ± 2.3, ViFi-CLIP 76.8, ActionCLIP's mean 58.3 ± 3.4).

Published few-shot figures with B/16, K = 2/4/8/16: X-CLIP 76.4/83.4/88.3/91.4, ViFi-CLIP
80.7/85.1/90.0/92.7, TC-CLIP 85.9/89.9/92.5/94.6.
"""

from dataclasses import replace

from experiments import kinetics400
from experiments.kinetics400 import b16, head
from videoclip.experiment import Row

# As in the original's settings for small sets: always the same frames of a clip, no RandAugment.
base = replace(
    kinetics400.base,
    data=replace(kinetics400.base.data, augment="actionclip", takes=1),
    finetune=replace(kinetics400.base.finetune, batch_size=32),
)

rows = {
    "full": Row(
        head=head, visual=b16, frames=32, published="97.1 (ActionCLIP, from Kinetics-400 weights)"
    ),
}
