"""Something-Something v2, recognition: the data set on which time decides.

Make the manifest: videoclip data prepare ssv2 ...             (docs/data.md)
Run:    videoclip train ssv2.joint --data ssv2.jsonl --checkpoint ViT-B/16
Expect: nothing is published for these modules; a mean over frames of CLIP B/16 reaches 44.0/76.2,
        X-CLIP 63.1/89.0, STAN 67.6/91.4 (8 frames, as STAN's paper compares them). Nothing is
        mirrored: the classes say left and right.
"""

from dataclasses import replace

from experiments import kinetics400
from experiments.kinetics400 import b16, head
from videoclip.experiment import Row
from videoclip.heads import Mean
from videoclip.mixers import Joint, Shift

base = replace(kinetics400.base, data=replace(kinetics400.base.data, augment="crop", crop=0.66))

rows = {
    "mean": Row(head=Mean(average="plain"), visual=b16, published="44.0/76.2 (CLIP B/16, by STAN)"),
    "transformer": Row(head=head, visual=b16),
    "shift": Row(head=head, visual=b16, mixer=Shift()),
    "joint": Row(head=Mean(average="plain"), visual=b16, mixer=Joint()),
}
