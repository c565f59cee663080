"""The slot over time: frame features become an embedding. A new head: one file, one line here.

`mean.py` the mean, `convolution.py` a learned shift, `lstm.py` read in order, `transformer.py`
attend to each other, `class_token.py` a class token reads the frames.
"""

from videoclip.heads.base import Head as Head
from videoclip.heads.class_token import ClassToken as ClassToken
from videoclip.heads.convolution import Convolution as Convolution
from videoclip.heads.lstm import LSTM as LSTM
from videoclip.heads.mean import Mean as Mean
from videoclip.heads.transformer import Transformer as Transformer
