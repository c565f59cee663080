"""pixels -> Features, token ids -> Embedding: CLIP's two towers.

`vit.py` the vision transformer, `text.py` the text transformer, `clip.py` the pair of them.
"""

from videoclip.towers.clip import CLIP
from videoclip.towers.text import Text
from videoclip.towers.vit import ViT

__all__ = ["CLIP", "Text", "ViT"]
