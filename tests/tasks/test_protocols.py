"""Retrieval protocols: a split that is not what published figures count is refused, and why."""

import csv
import json
from pathlib import Path

import pytest

from videoclip.manifest import Clip
from videoclip.tasks.protocols import PROTOCOLS, ProtocolError, protocol_named


def split(videos: int, captions: int | None = None) -> list[Clip]:
    """So many videos and captions, spread as evenly as they can be."""
    captions = videos if captions is None else captions
    each, more = divmod(captions, videos)
    return [
        Clip(f"v{i}", Path(f"v{i}.mp4"), tuple(f"text {j}" for j in range(each + (i < more))))
        for i in range(videos)
    ]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_published_counts_pass_and_their_neighbors_do_not(name: str) -> None:
    protocol = protocol_named(name)
    captions = protocol.captions or 10 * protocol.videos
    clips = split(protocol.videos, captions)
    line = protocol.check(clips)
    assert line.startswith(f"{name}: {protocol.videos:,} videos, {captions:,} captions, ")
    with pytest.raises(ProtocolError, match=f"{protocol.videos - 1:,} videos instead of"):
        protocol.check(clips[1:])
    with pytest.raises(ProtocolError, match=f"{protocol.videos + 1:,} videos instead of"):
        protocol.check([*clips, clips[0]])
    if protocol.captions:
        more = [clips[0]._replace(captions=(*clips[0].captions, "one more")), *clips[1:]]
        with pytest.raises(ProtocolError, match=f"{captions + 1:,} captions instead of"):
            protocol.check(more)


def test_the_counts_are_those_of_the_official_files(shared: Path) -> None:
    folder = shared / "data/annotations"

    def lines(path: str) -> list[str]:
        return (folder / path).read_text().split()

    with (folder / "msrvtt/MSRVTT_JSFUSION_test.csv").open() as file:
        rows = list(csv.DictReader(file))
    clips = [Clip(r["video_id"], Path(r["video_id"]), (r["sentence"],)) for r in rows]
    for name, size in (("msrvtt-1k-a", "9k"), ("msrvtt-7k", "7k")):
        assert PROTOCOLS[name].check(clips)
        assert PROTOCOLS[name].training == len(lines(f"msrvtt/MSRVTT_train.{size}.csv")) - 1
    full = PROTOCOLS["msrvtt-full"]
    assert full.videos == len(lines("msrvtt/MSRVTT_test.full.csv")) - 1
    assert full.training == len(lines("msrvtt/MSRVTT_train.full.csv")) - 1
    texts = json.loads((folder / "msvd/captions_msvd.json").read_text())
    clips = [Clip(v, Path(v), tuple(texts[v])) for v in lines("msvd/test_list.txt")]
    assert PROTOCOLS["msvd"].check(clips)
    assert PROTOCOLS["msvd"].training == len(lines("msvd/train_list.txt"))
    found = json.loads((folder / "activitynet/val.json").read_text())
    clips = [Clip(v, Path(v), (" ".join(x["sentences"]),)) for v, x in found.items()]
    assert PROTOCOLS["activitynet"].check(clips)
    apart = [Clip(v, Path(v), tuple(x["sentences"])) for v, x in found.items()]
    with pytest.raises(ProtocolError, match="it has one paragraph a video"):
        PROTOCOLS["activitynet"].check(apart)


def test_all_that_is_wrong_is_listed_at_once() -> None:
    clips = [Clip("a", Path("a")), Clip("b", Path("b"), ("one", "two")), *split(3)]
    with pytest.raises(ProtocolError) as error:
        PROTOCOLS["didemo"].check(clips)
    message = str(error.value)
    assert "test split is not didemo: 5 videos instead of 1,004; 5 captions instead of" in message
    assert "1 videos with several captions, but it has one paragraph a video" in message
    assert "1 videos without a caption: a." in message
    assert "--exclude-missing" in message


def test_one_caption_a_video_is_not_msvd() -> None:
    with pytest.raises(ProtocolError, match="one caption a video, but it has several"):
        PROTOCOLS["msvd"].check(split(670))


def test_videos_may_be_absent_where_that_is_asked_for_but_never_more() -> None:
    protocol = PROTOCOLS["msrvtt-1k-a"]
    assert "990 videos, 990 captions" in protocol.check(split(990), allow_fewer=True)
    with pytest.raises(ProtocolError, match="1,001 videos instead of 1,000"):
        protocol.check(split(1001), allow_fewer=True)
    with pytest.raises(ProtocolError, match="0 videos instead of 1,000"):
        protocol.check([], allow_fewer=True)
    with pytest.raises(ProtocolError, match="490 videos with several captions"):
        protocol.check(split(490, 980), allow_fewer=True)


def test_many_faulty_videos_are_named_up_to_ten() -> None:
    with pytest.raises(ProtocolError, match=r"v8, v9 and 990 more"):
        PROTOCOLS["lsmdc"].check(split(1000, 2000))


def test_another_training_list_is_said() -> None:
    protocol = PROTOCOLS["msrvtt-1k-a"]
    assert protocol.training_note(split(9000)) is None
    assert protocol.training_note([]) is None
    assert "7,010 training videos, the training list of msrvtt-1k-a 9,000" in str(
        protocol.training_note(split(7010))
    )
    assert PROTOCOLS["lsmdc"].training_note(split(5)) is None


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ProtocolError, match="'msrvtt-1ka'; did you mean 'msrvtt-1k-a'"):
        protocol_named("msrvtt-1ka")
    with pytest.raises(ProtocolError, match="known: activitynet, didemo, lsmdc"):
        protocol_named("kinetics")


def test_long_texts_get_more_words_and_frames() -> None:
    for protocol in PROTOCOLS.values():
        sizes = (64, 64) if protocol.texts == "paragraph" else (12, 32)
        assert (protocol.frames, protocol.words) == sizes


def test_the_page_shows_these_protocols() -> None:
    page = Path(__file__).resolve().parents[2] / "docs/protocols.md"
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in page.read_text().splitlines()
    ]
    shown = {row[0]: row[1:] for row in rows if len(row) == 7 and row[0] in PROTOCOLS}
    assert list(shown) == list(PROTOCOLS)
    texts = {"one": "one a video", "several": "several a video"}
    for name, protocol in PROTOCOLS.items():
        numbers = (protocol.videos, protocol.captions, protocol.training)
        videos, captions, training = (f"{n:,}" if n else "" for n in numbers)
        rule = texts.get(protocol.texts, "one paragraph a video")
        sizes = [str(protocol.frames), str(protocol.words)]
        assert shown[name] == [videos, captions or "not checked", rule, training, *sizes]
