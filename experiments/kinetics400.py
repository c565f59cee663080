"""Kinetics-400, recognition: ActionCLIP's transformer over 8 to 32 frames.

Make the manifest: videoclip data prepare kinetics400 ...      (docs/data.md)
Run:    videoclip train kinetics400.b32_8 --data kinetics400.jsonl --checkpoint ViT-B/32
        videoclip train kinetics400.b16_16 --data kinetics400.jsonl --checkpoint ViT-B/16
Expect: the figure of the row. Users who tested the released B/16 weights with 32 frames got 81.3
        (the copies of Kinetics differ). Not run here, where there are neither videos nor weights.

The settings are the original's, arithmetic included (docs/precision.md). Its 10x3 views are one
option: --task.views 10x3.
"""

from videoclip.experiment import Data, Experiment, Optim, Row
from videoclip.heads import LSTM, ClassToken, Convolution, Mean, Transformer
from videoclip.tasks import Recognition
from videoclip.towers import Labels, Network, ViT

base = Experiment(
    task=Recognition(views="1x1"),
    data=Data(
        frames=8, words=77, sampling="actionclip", augment="actionclip-randaugment", takes=8
    ),
    finetune=Optim(
        epochs=50, batch_size=128, tower_rate=5e-6, module_rate=5e-5, loss="kl",
        optimizer="adamw", schedule="actionclip", precision="reference-fp16", decay="all",
        epsilon=1e-8, max_norm=None,
    ),
    selection="last",  # what is published is measured on the validation split
)  # fmt: skip

head = Transformer(layers=6, average="plain", start="random", variant="reference")
b16 = ViT(patch_size=16)

# Top-1/top-5 on one clip and one crop.
rows = {
    "b32_8": Row(head=head, published="78.36/94.25 (ActionCLIP's README and log)"),
    "b16_8": Row(head=head, visual=b16, published="81.09/95.49 (ActionCLIP's README)"),
    "b16_16": Row(head=head, visual=b16, frames=16, published="81.68/95.87 (ActionCLIP's README)"),
    "b16_32": Row(head=head, visual=b16, frames=32, published="82.32/96.20 (ActionCLIP's README)"),
    # Video networks from scratch, without text. What pytorchvideo's model zoo reports took many
    # more epochs, settings of their own and several views of every clip.
    "x3d": Row(visual=Network(), text=Labels(), frames=16, published="75.9 (X3D-M, model zoo)"),
    "slowfast": Row(
        visual=Network(family="slowfast", frames=32), text=Labels(), frames=32,
        published="76.9 (SlowFast-R50 8x8, model zoo)",
    ),
    "mvit": Row(
        visual=Network(family="mvit"), text=Labels(), frames=16,
        published="78.9 (MViT-B 16x4, model zoo)",
    ),
    "mean": Row(head=Mean(average="plain")),
    "lstm": Row(head=LSTM(average="plain")),
    "convolution": Row(head=Convolution(average="plain")),
    "class_token": Row(head=ClassToken()),
}  # fmt: skip
