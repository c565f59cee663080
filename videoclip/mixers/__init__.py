"""The slot inside the tower: frames meet in its blocks. A new mixer: one file, one line here.

`none.py` frames stay alone, `shift.py` channels move in time (TSM, ActionCLIP), `joint.py` every
patch sees the patches of all frames.
"""

from videoclip.mixers.base import Mixer as Mixer
from videoclip.mixers.joint import Joint as Joint
from videoclip.mixers.none import NoMixer as NoMixer
from videoclip.mixers.shift import Shift as Shift
