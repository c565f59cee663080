"""ActivityNet Captions, retrieval: a whole video and the paragraph of all its sentences.

Make the manifest: videoclip data prepare activitynet ...      (docs/data.md)
Run:    videoclip train activitynet.mean --data activitynet.jsonl --checkpoint ViT-B/32
Expect: the figure of the row; not run here (see msrvtt.py).
"""

from dataclasses import replace

from experiments import msrvtt
from videoclip.tasks import Retrieval

base = replace(
    msrvtt.base,
    task=Retrieval(protocol="activitynet"),
    data=replace(msrvtt.base.data, frames=64, words=64),
)

figures = {
    "mean": "40.5/72.4/-/2/7.4 (CLIP4Clip meanP; video to text 42.5/74.1/85.8, VidLA)",
    "lstm": "40.1 R@1 (CLIP4Clip seqLSTM, recalled)",
    "transformer": "40.5 R@1 (CLIP4Clip seqTransf, recalled)",
    "tight": "19.5 R@1 (CLIP4Clip tightTransf, recalled)",
}
rows = {name: replace(row, published=figures[name]) for name, row in msrvtt.rows.items()}
