"""LSMDC, retrieval: 1,000 test clips of movies, a caption each.

Make the manifest: videoclip data prepare lsmdc ...            (docs/data.md)
Run:    videoclip train lsmdc.transformer --data lsmdc.jsonl --checkpoint ViT-B/32
Expect: the figure of the row; not run here (see msrvtt.py). LSMDC has validation clips, so the best
        epoch is chosen on them.
"""

from dataclasses import replace

from experiments import msrvtt
from videoclip.tasks import Retrieval

base = replace(msrvtt.base, task=Retrieval(protocol="lsmdc"), selection="best")

figures = {
    "mean": "20.7/38.9/47.2/13/65.3",
    "lstm": "21.6/41.8/49.8/11/58.0",
    "transformer": "22.6/41.0/49.1/11/61.0",
    "tight": "18.9/37.8/46.7/13/61.6",
}
rows = {
    name: replace(row, published=f"{figures[name]} (CLIP4Clip, recalled)")
    for name, row in msrvtt.rows.items()
}
