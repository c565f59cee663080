"""Find the clip of a caption among all clips, and the caption of a clip among all captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from videoclip.manifest import Clip, require_captions
from videoclip.tasks.base import Measure, Task, Texts
from videoclip.tasks.protocols import protocol_named
from videoclip.types import Keys


@dataclass(frozen=True, kw_only=True)
class Retrieval(Task):
    """Text-video retrieval by Recall@K."""

    captions: Literal["one", "every"] = "one"
    """What an epoch is. one: each clip once, with one of its captions. every: each caption once, as
    CLIP4Clip trains on MSR-VTT and MSVD."""
    protocol: str | None = None
    """The published protocol whose counts the test split must have, such as msrvtt-1k-a."""

    measure: ClassVar[Measure] = Measure(
        directions={"text_to_video": "text to video", "video_to_text": "video to text"},
        hits={"R@1": 1, "R@5": 5, "R@10": 10},
        positions=True,
        queries="captions",
    )

    def require(self, clips: Sequence[Clip], path: Path) -> None:
        """Raises ManifestError that names the clips without a caption."""
        require_captions(clips, path)

    def check(self, test: Sequence[Clip]) -> str | None:
        """The counts of the test split. Raises ProtocolError where they are not the protocol's."""
        return protocol_named(self.protocol).check(test) if self.protocol else None

    def samples(self, training: Sequence[Clip], classes: Sequence[str], seed: int) -> list[Clip]:
        """The clips, or every caption as a sample of its own, named `VIDEO_ID#NUMBER`."""
        if self.captions == "one":
            return list(training)
        return [
            clip._replace(video_id=f"{clip.video_id}#{number}", captions=(caption,))
            for clip in training
            for number, caption in enumerate(clip.captions)
        ]

    def sentences(self, clips: Sequence[Clip], classes: Sequence[str]) -> list[str]:
        """The captions."""
        return [caption for clip in clips for caption in clip.captions]

    def texts(
        self,
        clips: Sequence[Clip],
        numbers: Sequence[np.random.Generator],
        classes: Sequence[str] = (),
    ) -> Texts:
        """One caption of each clip; clips with the same caption match each other's."""
        captions = tuple(
            clip.captions[number.integers(len(clip.captions))]
            for clip, number in zip(clips, numbers, strict=True)
        )
        return Texts(captions, Keys.of(captions, captions))
