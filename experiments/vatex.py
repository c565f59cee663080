"""VATEX, retrieval: 1,500 test videos, about ten captions each, on the split of hgr_v2t.

Make the manifest: videoclip data prepare vatex ...            (docs/data.md)
Run:    videoclip train vatex.transformer --data vatex.jsonl --checkpoint ViT-B/32
Expect: nothing is published for CLIP4Clip's own modules here; DRL, which compares tokens, reports
        63.5/91.7/96.5 and TS2-Net 59.1/90.0/95.2.
"""

from dataclasses import replace

from experiments import msrvtt
from videoclip.tasks import Retrieval

base = replace(msrvtt.base, task=Retrieval(captions="every", protocol="vatex"))

rows = {name: replace(row, published=None) for name, row in msrvtt.rows.items()}
