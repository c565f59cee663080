"""manifest -> is it what a published retrieval figure was measured on? Its counts, by name.

A test set that lost a video, or whose paragraphs fell apart into sentences, gives figures that no
paper's can be compared with. Here the counts are stated once and checked before anything is run.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from videoclip.errors import VideoclipError, nearest
from videoclip.manifest import Clip

SHOWN = 10
"""How many videos an error message names."""
Texts = Literal["one", "several", "paragraph"]
RULES: dict[Texts, str] = {
    "one": "one caption a video",
    "several": "several captions a video, each a query of its own",
    "paragraph": "one paragraph a video, all its sentences joined",
}


class ProtocolError(VideoclipError):
    """A split that is not what its protocol is measured on; the message lists what differs."""


class Protocol(NamedTuple):
    """What a published retrieval figure counts."""

    name: str
    """As users give it."""
    videos: int
    """Videos of the test split."""
    captions: int | None
    """Queries of the test split; None where no source states their number."""
    texts: Texts
    """How captions belong to videos."""
    training: int | None
    """Videos of the training list; None where none is stated."""
    source: str
    """Where the counts come from."""
    frames: int = 12
    """Frames per clip in CLIP4Clip's recipe."""
    words: int = 32
    """Tokens per caption in CLIP4Clip's recipe."""

    def check(self, clips: Sequence[Clip], *, allow_fewer: bool = False) -> str:
        """One line with the counts of a test split, all as they should be.

        Raises ProtocolError listing what is not; `allow_fewer` lets videos be absent.
        """
        captions = sum(len(clip.captions) for clip in clips)
        faults = []
        for what, expected, found in (
            ("videos", self.videos, len(clips)),
            ("captions", self.captions, captions),
        ):
            if (
                expected is not None
                and found != expected
                and not (allow_fewer and 0 < found < expected)
            ):
                faults.append(f"{found:,} {what} instead of {expected:,}")
        several = [clip.video_id for clip in clips if len(clip.captions) > 1]
        without = [clip.video_id for clip in clips if not clip.captions]
        if self.texts != "several" and several:
            faults.append(
                f"{len(several):,} videos with several captions, but it has {RULES[self.texts]}: "
                f"{_named(several)}"
            )
        if without:
            faults.append(f"{len(without):,} videos without a caption: {_named(without)}")
        if self.texts == "several" and clips and not several:
            faults.append(f"one caption a video, but it has {RULES['several']}")
        if faults:
            raise ProtocolError(
                f"the manifest's test split is not {self.name}: {'; '.join(faults)}. The counts "
                f"are from {self.source}. Make the manifest from the official lists: a video whose "
                "file is missing stays in it and counts as a miss, or is left out by "
                "--exclude-missing, which says so in the result"
            )
        return f"{self.name}: {len(clips):,} videos, {captions:,} captions, {RULES[self.texts]}"

    def training_note(self, clips: Sequence[Clip]) -> str | None:
        """A sentence where a training split has another size than the protocol's list."""
        if not clips or self.training in (None, len(clips)):
            return None
        return (
            f"The manifest has {len(clips):,} training videos, the training list of {self.name} "
            f"{self.training:,}: a model that was trained on them has seen another list."
        )


def protocol_named(name: str) -> Protocol:
    """The protocol of this name. Raises ProtocolError with the nearest one."""
    if name not in PROTOCOLS:
        raise ProtocolError(f"no retrieval protocol is named {name!r}; {nearest(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN:,} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "msrvtt-1k-a", 1_000, 1_000, "one", 9_000,
            "MSRVTT_JSFUSION_test.csv (Yu et al. 2018, JSFusion) and MSRVTT_train.9k.csv",
        ),
        Protocol(
            "msrvtt-7k", 1_000, 1_000, "one", 7_010,
            "MSRVTT_JSFUSION_test.csv, the same test, and MSRVTT_train.7k.csv (Miech et al. 2019)",
        ),
        Protocol(
            "msrvtt-full", 2_990, 59_800, "several", 6_513,
            "the official split (Xu et al. 2016), 20 captions a video",
        ),
        Protocol(
            "msvd", 670, 27_763, "several", 1_200,
            "test_list.txt and raw-captions.pkl as CLIP4Clip reads them",
        ),
        Protocol(
            "lsmdc", 1_000, 1_000, "one", None,
            "LSMDC16_challenge_1000_publictect.csv (Rohrbach et al. 2017)",
        ),
        Protocol(
            "activitynet", 4_917, 4_917, "paragraph", 10_009,
            "val_ids.json (val1) as CLIP4Clip reads it; there is no public test split",
            frames=64, words=64,
        ),
        Protocol(
            "didemo", 1_004, 1_004, "paragraph", 8_395,
            "test_list.txt as CLIP4Clip reads it; the annotations themselves name more videos",
            frames=64, words=64,
        ),
        Protocol(
            "vatex", 1_500, None, "several", 25_991,
            "the split of hgr_v2t (cshizhe/hgr_v2t#28, LiuRicky/ts2_net#11): half of the official "
            "validation videos; the number of captions, about ten a video, is not checked",
        ),
    )
}  # fmt: skip
"""All retrieval protocols, by name."""
