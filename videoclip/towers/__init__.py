"""pixels -> Features, token ids -> Embedding: CLIP's two towers.

`vit.py` the vision transformer, `resnet.py` the modified ResNet, `text.py` the text transformer,
`clip.py` a vision tower and a text tower.
"""

from videoclip.towers.base import Visual
from videoclip.towers.clip import CLIP
from videoclip.towers.resnet import ResNet
from videoclip.towers.text import Text
from videoclip.towers.vit import ViT

__all__ = ["CLIP", "ResNet", "Text", "ViT", "Visual"]
