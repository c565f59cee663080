"""Pictures with captions as batches: pure functions of the key, and bad ones accounted for."""

import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_shards import jpeg, tar

from videoclip.errors import ImageError, VideoclipError
from videoclip.image_text.pairs import PairLoader, open_pairs
from videoclip.image_text.shards import write_shards
from videoclip.tokenizer import Tokenizer

TOKENS = Tokenizer(12)


@pytest.fixture
def table(tmp_path):
    """Ten noisy pictures with a caption each, the first with two."""
    numbers = np.random.default_rng(0)
    for number in range(10):
        pixels = numbers.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    rows = [[f"{n}.png", f"picture number {n}"] for n in range(10)]
    path = tmp_path / "pairs.csv"
    frame = pd.DataFrame([*rows, ["0.png", "the first"]], columns=["filepath", "caption"])
    frame.to_csv(path, index=False)
    return path


def draw(pairs, **options):
    turn = {"epoch": options.pop("epoch", 1), "start": options.pop("start", 0)}
    key = {"batch_size": 4, "size": 16, "crop": 0.5, "seed": 0, "workers": 0}
    return list(PairLoader(pairs, TOKENS, **(key | options)).epoch(**turn))


def test_every_pair_once_in_batches_of_equal_size(table) -> None:
    pairs = open_pairs(table)
    batches = draw(pairs)
    assert [len(batch.names) for batch in batches] == [4, 3, 3]
    assert {n for b in batches for n in b.names} == {f"{n}.png" for n in range(10)}
    assert batches[0].frames.pixels.shape == (4, 1, 3, 16, 16)
    assert batches[0].frames.pixels.dtype == torch.uint8
    assert batches[0].frames.mask.all()
    for batch in batches:
        for name, ids in zip(batch.names, batch.ids, strict=True):
            number = name.split("/")[-1].removesuffix(".png")
            assert TOKENS.decode(ids.tolist()[1:]) in (f"picture number {number}", "the first")
    assert pairs.counts() == "found 10 = usable 10 + 0 bad"


def same(a, b) -> bool:
    return (
        a.names == b.names
        and torch.equal(a.frames.pixels, b.frames.pixels)
        and torch.equal(a.ids, b.ids)
    )


def test_batches_depend_on_the_key_alone(table) -> None:
    pairs = open_pairs(table)
    first = draw(pairs)
    for workers in (1, 2):
        assert all(map(same, first, draw(pairs, workers=workers)))
    assert all(map(same, first[1:], draw(pairs, start=1)))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert all(map(same, first, draw(pairs)))
    assert torch.equal(torch.get_rng_state(), state)
    pixels = {}
    for batches in (first, draw(pairs, epoch=2), draw(pairs, seed=1)):
        for batch in batches:
            for name, picture in zip(batch.names, batch.frames.pixels, strict=True):
                pixels.setdefault(name, []).append(picture)
    assert all(not torch.equal(a, b) and not torch.equal(a, c) for a, b, c in pixels.values())
    assert first[0].names != draw(pairs, epoch=2)[0].names


def test_where_the_folder_lies_changes_nothing(table, tmp_path_factory, monkeypatch) -> None:
    first = draw(open_pairs(table))
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(table.parent, elsewhere)
    assert all(map(same, first, draw(open_pairs(elsewhere / "pairs.csv"))))
    monkeypatch.chdir(elsewhere)
    assert all(map(same, first, draw(open_pairs("pairs.csv"))))


def test_both_captions_of_a_picture_are_drawn_and_equal_ones_match(table) -> None:
    pairs = open_pairs(table)
    seen = set()
    for epoch in range(12):
        for batch in draw(pairs, epoch=epoch):
            rows = [TOKENS.decode(ids.tolist()[1:]) for ids in batch.ids]
            seen |= {r for r, n in zip(rows, batch.names, strict=True) if n == "0.png"}
    assert seen == {"picture number 0", "the first"}
    frame = pd.read_csv(table)
    frame["caption"] = ["a", "b"] * 5 + ["a"]
    frame.to_parquet(table.with_suffix(".parquet"))
    (batch,) = draw(open_pairs(table.with_suffix(".parquet")), batch_size=10)
    letters = [TOKENS.decode(ids.tolist()[1:]) for ids in batch.ids]
    assert batch.matches.tolist() == [[a == b for b in letters] for a in letters]


def test_the_crop_keeps_its_share_and_one_is_the_whole_picture(tmp_path) -> None:
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    Image.fromarray(np.stack([ramp, ramp.T, ramp], -1)).save(tmp_path / "ramp.png")
    pd.DataFrame({"image": ["ramp.png"], "text": ["x"]}).to_csv(tmp_path / "p.tsv", sep="\t")
    pairs = open_pairs(tmp_path / "p.tsv")
    for epoch in range(20):
        (batch,) = draw(pairs, size=64, epoch=epoch)
        across, down, _ = batch.frames.pixels[0, 0].float()
        width, height = (int(x.max() - x.min()) / 252 for x in (across, down))
        assert 0.45 < width * height <= 1
        (whole,) = draw(pairs, size=64, epoch=epoch, crop=1.0)
        assert int(whole.frames.pixels[0, 0, 0].max()) >= 240


def test_bad_pictures_are_left_out_named_and_counted(table) -> None:
    (table.parent / "3.png").write_bytes((table.parent / "3.png").read_bytes()[:500])
    (table.parent / "7.png").unlink()
    frame = pd.read_csv(table)
    frame.loc[len(frame)] = ["", "no path"]
    frame.loc[len(frame)] = ["http://host/a.png", "an address"]
    frame.loc[len(frame)] = ["9.png", ""]
    frame.to_csv(table, index=False)
    pairs = open_pairs(table)
    assert list(pairs.bad) == ["row 12", "row 13", "row 14"]
    batches = draw(pairs, workers=2)
    assert sum(len(batch.names) for batch in batches) == 8
    assert pairs.counts() == "found 13 = usable 8 + 5 bad"
    assert "does not exist" in pairs.bad["7.png"]
    assert "cannot be read as a picture" in pairs.bad["3.png"]


def test_a_batch_without_readable_pictures_has_no_names(table) -> None:
    for path in table.parent.glob("*.png"):
        path.write_bytes(b"x")
    pairs = open_pairs(table)
    batches = draw(pairs)
    assert [batch.names for batch in batches] == [()] * 3
    assert batches[0].frames.pixels.shape == (0, 1, 3, 16, 16)
    assert len(pairs.bad) == 10


def test_shards_give_what_the_table_gives(table) -> None:
    samples = [(str(n), table.parent / f"{n}.png", f"picture number {n}") for n in range(10)]
    write_shards(samples, table.parent / "shards", per_shard=4)
    pairs = open_pairs(table.parent / "shards")
    for number in range(10):
        image, captions = pairs.read(number)
        assert captions == [f"picture number {number}"]
        wanted = Image.open(table.parent / f"{number}.png")
        assert (np.array(image) == np.array(wanted)).all()
    assert sum(len(batch.names) for batch in draw(pairs, workers=2)) == 10


def test_shards_with_damage_inside_add_up(tmp_path) -> None:
    members = []
    for number in range(6):
        picture = jpeg(number) if number != 2 else jpeg()[:300]
        caption = f"number {number}".encode() if number != 4 else b"\xff\xfe"
        members += [(f"{number}.jpg", picture), (f"{number}.txt", caption)]
    for name, caption in (("j", {"caption": "from json"}), ("k", {"url": "x"}), ("e", None)):
        text = json.dumps(caption).encode() if caption else b"  "
        members += [(f"{name}.jpg", jpeg()), (f"{name}.{'json' if caption else 'txt'}", text)]
    whole = tar(tmp_path / "a.tar", members)
    cut = tar(tmp_path / "b.tar", [("0.jpg", jpeg()), ("0.txt", b"kept"), ("1.jpg", jpeg() * 9)])
    cut.write_bytes(cut.read_bytes()[: cut.read_bytes().rindex(b"1.jpg") + 700])
    pairs = open_pairs(str(tmp_path))
    batches = draw(pairs, workers=1)
    names = {name for batch in batches for name in batch.names}
    assert names == {"a.tar/0", "a.tar/1", "a.tar/3", "a.tar/5", "a.tar/j", "b.tar/0"}
    assert set(pairs.bad) >= {"a.tar/2", "a.tar/4", "a.tar/k", "a.tar/e"}
    assert pairs.found == len(names) + len(pairs.bad)
    assert "its caption cannot be read" in pairs.bad["a.tar/4"]
    assert "caption is empty" in pairs.bad["a.tar/e"]
    assert "no caption, captions" in pairs.bad["a.tar/k"]
    assert any("b.tar: it is cut off" in note for note in pairs.notes)
    assert whole.is_file()


def test_a_manifest_of_pictures(table) -> None:
    rows = [{"video_id": str(n), "path": f"{n}.png", "captions": [f"n {n}"]} for n in range(3)]
    path = table.parent / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert open_pairs(path).read(2)[1] == ["n 2"]


def test_wrong_sources_are_one_message(tmp_path) -> None:
    with pytest.raises(VideoclipError, match=r"none.csv does not exist"):
        open_pairs(tmp_path / "none.csv")
    path = tmp_path / "p.csv"
    path.write_text("where,what\na,b\n")
    with pytest.raises(
        VideoclipError, match=r"has the columns where, what; it needs one of filepath"
    ):
        open_pairs(path)
    path.write_text("image,text\n,\n")
    with pytest.raises(VideoclipError, match=r"no row of .* can be used"):
        open_pairs(path)
    path.write_bytes(b"image,text\n\xff\xfe,\xff\n")
    with pytest.raises(VideoclipError, match=r"cannot be read as a table"):
        open_pairs(path)
    path.with_suffix(".parquet").write_bytes(b"PAR1 no")
    with pytest.raises(VideoclipError, match=r"cannot be read as a table"):
        open_pairs(path.with_suffix(".parquet"))


def test_a_bomb_is_refused(tmp_path, monkeypatch) -> None:
    file = io.BytesIO()
    Image.new("L", (100, 100)).save(file, "PNG")
    pairs = open_pairs(str(tar(tmp_path / "s.tar", [("1.png", file.getvalue()), ("1.txt", b"x")])))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(ImageError, match=r"s.tar/1 is refused"):
        pairs.read(0)


def test_a_dead_worker_is_one_message(table, monkeypatch) -> None:
    import os

    from videoclip.image_text import pairs as module

    monkeypatch.setattr(module.TablePairs, "read", lambda *_: os._exit(3))
    with pytest.raises(VideoclipError, match="has ended with status 3 while it read"):
        draw(open_pairs(table), workers=1)
