"""The slot with the text: texts meet videos. A new scorer is one file, one line here.

`cosine.py` a matrix product of unit vectors, `dot.py` of vectors as they are, `tight.py` a
transformer over text and frames.
"""

from videoclip.scorers.base import Scorer as Scorer
from videoclip.scorers.cosine import Cosine as Cosine
from videoclip.scorers.dot import Dot as Dot
from videoclip.scorers.tight import Tight as Tight
