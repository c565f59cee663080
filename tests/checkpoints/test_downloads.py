"""Downloads are resumed, verified and explained, against real servers on this machine."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from foreign import captions, open_clip_model, transformers_config, write_archive

import videoclip
from videoclip.checkpoints import named
from videoclip.checkpoints.downloads import download, hub_folder
from videoclip.errors import WeightsError

COMMIT = "0" * 40


class Server:
    """Serves files, with or without ranges; may cut the first answer short."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.ranges, self.cut = True, 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                wanted = self.headers.get("Range")
                server.asked.append((self.command, self.path, wanted))
                data = server.files.get(self.path)
                if data is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("X-Repo-Commit", COMMIT)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
                if wanted and server.ranges and start >= len(data):
                    self.send_error(416)
                    return
                part = data[start:] if server.ranges else data
                self.send_response(206 if wanted and server.ranges else 200)
                self.send_header("Content-Length", str(len(part)))
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if body:
                    self.wfile.write(part[: server.cut or None])
                    server.cut = 0

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


DATA = bytes(range(256)) * 5000
CHECKSUM = hashlib.sha256(DATA).hexdigest()


def get(server: Server, path: Path) -> None:
    download(f"{server.address}/model.pt", path, CHECKSUM)


def test_a_file_is_downloaded_once_and_left_alone(server, tmp_path) -> None:
    server.files["/model.pt"] = DATA
    path = tmp_path / "new" / "model.pt"
    get(server, path)
    assert path.read_bytes() == DATA
    get(server, path)
    assert server.asked == [("GET", "/model.pt", None)]
    assert {p.name for p in path.parent.iterdir()} <= {"model.pt", "model.pt.lock"}


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(server, tmp_path, ranges: bool) -> None:
    server.files["/model.pt"], server.ranges, server.cut = DATA, ranges, 300_000
    path = tmp_path / "model.pt"
    with pytest.raises(WeightsError, match=r"ended after 300000 of 1280000 bytes"):
        get(server, path)
    assert not path.exists()
    assert (tmp_path / "model.pt.part").read_bytes() == DATA[:300_000]
    get(server, path)
    assert path.read_bytes() == DATA
    assert server.asked[-1] == ("GET", "/model.pt", "bytes=300000-")


def test_a_finished_part_is_only_verified(server, tmp_path) -> None:
    server.files["/model.pt"] = DATA
    (tmp_path / "model.pt.part").write_bytes(DATA)
    get(server, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == DATA


@pytest.mark.parametrize("begun", [b"", b"other bytes", b"x" * len(DATA)])
def test_what_is_not_the_published_file_is_deleted(server, tmp_path, begun: bytes) -> None:
    server.files["/model.pt"] = DATA if begun else DATA[:-1]
    if begun:
        (tmp_path / "model.pt.part").write_bytes(begun)
    with pytest.raises(WeightsError, match=f"expected {CHECKSUM}; it was deleted"):
        get(server, tmp_path / "model.pt")
    assert not list(tmp_path.glob("model.pt")) + list(tmp_path.glob("*.part"))
    server.files["/model.pt"] = DATA
    get(server, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == DATA


@pytest.mark.parametrize("begun", [b"", DATA[:900]])
def test_no_more_is_taken_than_was_published(server, tmp_path, begun: bytes) -> None:
    """Whoever sends without an end must not fill the disk."""
    server.files["/model.pt"], path = DATA, tmp_path / "model.pt"
    (tmp_path / "model.pt.part").write_bytes(begun)
    with pytest.raises(WeightsError, match="sends more than the 1,000 bytes that were published"):
        download(f"{server.address}/model.pt", path, CHECKSUM, 1000)
    assert not list(tmp_path.glob("model.pt")) + list(tmp_path.glob("*.part"))
    (tmp_path / "model.pt.part").write_bytes(DATA)
    asked = len(server.asked)
    download(f"{server.address}/model.pt", path, CHECKSUM, len(DATA))
    assert path.read_bytes() == DATA
    assert len(server.asked) == asked, "what is complete is only verified"


def test_processes_that_want_the_same_file_wait_for_one(server, tmp_path) -> None:
    server.files["/model.pt"] = DATA
    path = tmp_path / "model.pt"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: get(server, path), range(4)))
    assert path.read_bytes() == DATA
    assert len(server.asked) == 1


def test_without_a_network_the_error_says_where_to_put_the_file(server, tmp_path) -> None:
    path = tmp_path / "model.pt"
    with pytest.raises(WeightsError, match=rf"HTTP Error 404.*put it at {re.escape(str(path))}"):
        get(server, path)
    with pytest.raises(WeightsError, match=rf"refused.*put it at {re.escape(str(path))}"):
        download("http://127.0.0.1:9/model.pt", path, CHECKSUM)


@pytest.fixture
def published(server, tmp_path, monkeypatch) -> Path:
    """A server that publishes a small model as ViT-B/32, and the cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VIDEOCLIP_CACHE", str(tmp_path / "cache"))
    write_archive(open_clip_model(), tmp_path / "small.pt")
    data = (tmp_path / "small.pt").read_bytes()
    checksum = hashlib.sha256(data).hexdigest()
    server.files[f"/{checksum}/ViT-B-32.pt"] = data
    monkeypatch.setattr(named, "HOST", server.address)
    monkeypatch.setitem(named.CHECKSUMS, "ViT-B/32", checksum)
    return tmp_path / "cache" / "ViT-B-32.pt"


def test_a_named_model_is_fetched_once(server, published, tmp_path) -> None:
    ids = captions()
    expected = videoclip.load(tmp_path / "small.pt").encode_text(ids)
    for _ in range(2):
        assert torch.equal(videoclip.load("ViT-B/32").encode_text(ids), expected)
    assert published.is_file()
    assert len(server.asked) == 1
    with pytest.raises(WeightsError, match="was trained with quick_gelu, not with gelu"):
        videoclip.load("ViT-B/32", activation="gelu")


def test_a_file_that_openais_code_downloaded_is_used(server, published, tmp_path) -> None:
    theirs = tmp_path / "home/.cache/clip/ViT-B-32.pt"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"another")
    videoclip.load("ViT-B/32")
    assert len(server.asked) == 1
    published.unlink()
    theirs.write_bytes((tmp_path / "small.pt").read_bytes())
    videoclip.load("ViT-B/32")
    assert len(server.asked) == 1


def test_a_wrong_file_in_the_cache_is_named(published) -> None:
    published.parent.mkdir()
    published.write_bytes(b"wrong")
    with pytest.raises(WeightsError, match=r"ViT-B-32\.pt is not the published ViT-B/32.*delete"):
        videoclip.load("ViT-B/32")


def test_offline_a_named_model_says_where_to_put_it(published, monkeypatch) -> None:
    monkeypatch.setattr(named, "HOST", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=re.escape(f"put it at {published}")):
        videoclip.load("ViT-B/32")


@pytest.mark.parametrize("name", ["ViT-B/23", "RN50/x4", "ViT-B-32", "vit-l/14", "RN50x3"])
def test_a_name_that_openai_does_not_have(name: str) -> None:
    message = rf"no file or folder {name}, and OpenAI has no such model; did you mean '"
    with pytest.raises(WeightsError, match=message):
        videoclip.load(name)


# The Hugging Face hub.


@pytest.fixture
def hub(server, tmp_path, monkeypatch) -> Server:
    """The hub's library, turned to our server and an empty cache."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return server


def publish(hub: Server, name: str, folder: Path) -> None:
    for path in folder.iterdir():
        hub.files[f"/{name}/resolve/main/{path.name}"] = path.read_bytes()


def test_a_model_of_the_hub_is_fetched_and_then_opened_without_it(hub, tmp_path) -> None:
    import transformers

    theirs = transformers.CLIPModel(transformers_config()).eval()
    theirs.save_pretrained(tmp_path / "model", max_shard_size="400KB")
    publish(hub, "owner/clip", tmp_path / "model")
    ids = captions()
    expected = theirs.get_text_features(input_ids=ids).pooler_output
    for _ in range(2):
        found = videoclip.load("owner/clip").encode_text(ids)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        hub.files.clear()


def test_what_we_save_can_be_opened_from_the_hub(hub, tmp_path) -> None:
    from models import build

    model = build(head="lstm")
    model.save_pretrained(tmp_path / "model")
    publish(hub, "owner/video", tmp_path / "model")
    again = videoclip.load("owner/video")
    assert again.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_open_clips_file_is_taken_where_the_other_is_of_another_project(hub, tmp_path) -> None:
    from foreign import open_clip_config
    from safetensors.torch import save_file

    theirs = open_clip_model("vit", "gelu")
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(theirs.state_dict(), folder / "open_clip_model.safetensors")
    save_file({"blocks.0": torch.ones(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_base_patch32_clip_224"}))
    config = {"model_cfg": open_clip_config("vit", "gelu")}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    publish(hub, "timm/clip", folder)
    ids = captions()
    found = videoclip.load("timm/clip").encode_text(ids)
    torch.testing.assert_close(found, theirs.encode_text(ids), atol=1e-5, rtol=0)
    assert not any(p.endswith("/model.safetensors") for _, p, _ in hub.asked)


def test_what_only_the_weights_are_kept_of_is_completed(hub, tmp_path, monkeypatch, capsys) -> None:
    """As transformers leaves its cache; the constants may not be OpenAI's."""
    import transformers

    transformers.CLIPModel(transformers_config()).eval().save_pretrained(tmp_path / "model")
    transformers.CLIPImageProcessor(image_mean=[0.5] * 3).save_pretrained(tmp_path / "model")
    publish(hub, "owner/clip", tmp_path / "model")
    for file in ("config.json", "model.safetensors"):
        huggingface_hub.hf_hub_download("owner/clip", file)
    with monkeypatch.context() as patch:
        nowhere = "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
        patch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
        assert videoclip.load("owner/clip").config.pixels.mean != (0.5, 0.5, 0.5)
    assert "as if preprocessor_config.json" in capsys.readouterr().err
    assert videoclip.load("owner/clip").config.pixels.mean == (0.5, 0.5, 0.5)
    hub.files.clear()
    hub.asked.clear()
    assert videoclip.load("owner/clip").config.pixels.mean == (0.5, 0.5, 0.5)
    assert not hub.asked


def test_parts_that_an_interrupted_download_left_out_are_fetched(hub, tmp_path) -> None:
    import transformers

    folder = tmp_path / "model"
    transformers.CLIPModel(transformers_config()).save_pretrained(folder, max_shard_size="400KB")
    publish(hub, "owner/clip", folder)
    last = f"/owner/clip/resolve/main/{sorted(p.name for p in folder.glob('*.safetensors'))[-1]}"
    content = hub.files.pop(last)
    with pytest.raises(WeightsError, match="which is not there; get all parts"):
        videoclip.load("owner/clip")
    for path in (tmp_path / "hub").rglob(".no_exist/*/model-*"):
        path.unlink()
    hub.files[last] = content
    assert videoclip.load("owner/clip").config.visual.layers == 3


def test_a_repository_without_weights_and_a_missing_network_say_what_to_do(hub, tmp_path) -> None:
    hub.files["/owner/clip/resolve/main/config.json"] = b"{}"
    message = r"owner/clip is no file or folder.*no weights of a kind.*model\.safetensors into one"
    with pytest.raises(WeightsError, match=message):
        videoclip.load("owner/clip")
    hub.close()
    with pytest.raises(WeightsError, match=r"owner/other is no file or folder.*give that folder"):
        hub_folder("owner/other")
