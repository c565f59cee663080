"""pixels -> Features, token ids -> Embedding: CLIP's two towers.

`vit.py` the vision transformer, `resnet.py` the modified ResNet, `text.py` the text transformer,
`clip.py` a vision tower and a text tower. `network.py`, `tsm.py` and `labels.py` are for networks
that know no text.
"""

from videoclip.towers.base import Language, Visual
from videoclip.towers.clip import CLIP, LabeledVision, two_sides
from videoclip.towers.labels import Labels
from videoclip.towers.network import Network
from videoclip.towers.resnet import ResNet
from videoclip.towers.text import Text
from videoclip.towers.tsm import TSM
from videoclip.towers.vit import ViT

__all__ = [
    "CLIP",
    "TSM",
    "LabeledVision",
    "Labels",
    "Language",
    "Network",
    "ResNet",
    "Text",
    "ViT",
    "Visual",
    "two_sides",
]
