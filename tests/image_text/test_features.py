"""Features of labelled pictures: computed once, kept, made anew when anything changes."""

import numpy as np
import pytest
import torch
from pictures_on_disk import class_folders, small_clip

from videoclip.errors import ImageError, VideoclipError
from videoclip.features.fingerprint import fingerprint
from videoclip.image_text.features import extract
from videoclip.image_text.images import image_set


def test_features_are_the_towers_and_batches_change_nothing(tmp_path) -> None:
    model, images = small_clip(), image_set(class_folders(tmp_path / "c"))
    found = extract(model, images, store=None, batch_size=5, progress=False)
    pixels = torch.stack([model.preprocess(images.image(i)) for i in range(len(images))])
    with torch.no_grad():
        wanted = model.encode_image(pixels).numpy()
    assert np.abs(found.features - wanted).max() < 1e-6
    assert found.labels.tolist() == images.labels.tolist()
    assert found.names.tolist() == list(images.names)


def test_before_the_projection_it_is_the_class_token(tmp_path) -> None:
    model, images = small_clip(), image_set(class_folders(tmp_path / "c"))
    store = tmp_path / "store"  # one store keeps both kinds apart
    found = extract(model, images, store=store, before_projection=True, progress=False)
    joint = extract(model, images, store=store, progress=False)
    assert found.features.shape == (12, 64)
    projected = found.features @ model.clip.visual.proj.detach().numpy()
    assert np.abs(projected - joint.features).max() < 1e-5


def test_what_is_kept_is_used_until_weights_or_pictures_change(tmp_path, monkeypatch) -> None:
    folder = class_folders(tmp_path / "c")
    model, images, store = small_clip(), image_set(folder), tmp_path / "store"
    first = extract(model, images, store=store, progress=False)
    monkeypatch.setattr(type(images), "image", lambda *_: pytest.fail("read a picture again"))
    again = extract(model, image_set(folder), store=store, progress=False)
    assert (again.features == first.features).all()
    assert again.names.tolist() == first.names.tolist()
    monkeypatch.undo()
    with torch.no_grad():
        model.clip.visual.proj.mul_(2)
    other = extract(model, images, store=store, progress=False)
    assert np.abs(other.features - 2 * first.features).max() < 1e-5
    assert len(list(store.iterdir())) == 2
    (folder / "red" / "3.png").unlink()
    assert len(extract(model, image_set(folder), store=store, progress=False).labels) == 11


def test_a_batch_holds_a_picture(tmp_path) -> None:
    images = image_set(class_folders(tmp_path / "c", 1))
    with pytest.raises(VideoclipError, match=r"batch size is 0"):
        extract(small_clip(), images, store=None, batch_size=0, progress=False)


def test_unreadable_pictures_are_listed_and_the_rest_goes_on(tmp_path) -> None:
    folder = class_folders(tmp_path / "c")
    (folder / "green" / "2.png").write_bytes(b"x")
    found = extract(small_clip(), image_set(folder), store=tmp_path / "s", progress=False)
    assert list(found.unreadable) == ["green/2.png"]
    assert len(found.labels) == 11
    assert "green/2.png" not in found.names
    kept = extract(small_clip(), image_set(folder), store=tmp_path / "s", progress=False)
    assert kept.unreadable == found.unreadable


def test_a_damaged_store_is_made_again(tmp_path, capsys) -> None:
    model, images = small_clip(), image_set(class_folders(tmp_path / "c"))
    first = extract(model, images, store=tmp_path / "s", progress=False)
    (path,) = (tmp_path / "s").iterdir()
    path.write_bytes(path.read_bytes()[:200])
    again = extract(model, images, store=tmp_path / "s", progress=False)
    assert (again.features == first.features).all()
    assert "is damaged" in capsys.readouterr().out


def test_nothing_readable_is_an_error(tmp_path) -> None:
    folder = class_folders(tmp_path / "c", 1)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(ImageError, match=r"none of the 3 pictures can be read; blue/0.png"):
        extract(small_clip(), image_set(folder), store=None, progress=False)


def test_the_fingerprint_follows_weights_and_configuration() -> None:
    model = small_clip()
    before = fingerprint(model)
    assert fingerprint(small_clip()) == before
    with torch.no_grad():
        model.clip.ln_final.bias[0] += 1e-7
    assert fingerprint(model) != before
    assert fingerprint(small_clip().to(torch.bfloat16)) != before
