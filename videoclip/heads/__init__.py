"""The slot over time: frame features become an embedding. A new head: one file, one line here.

`mean.py` the mean, `lstm.py` read in order, `transformer.py` attend to each other.
"""

from videoclip.heads.base import Head as Head
from videoclip.heads.lstm import LSTM as LSTM
from videoclip.heads.mean import Mean as Mean
from videoclip.heads.transformer import Transformer as Transformer
