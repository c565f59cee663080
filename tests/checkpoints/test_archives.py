"""Files of weights are read to the bit, and nothing that they hold is executed."""

import argparse
import io
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import open_clip_model, write_archive
from torch import nn

from videoclip.checkpoints import archives
from videoclip.checkpoints.archives import is_torchscript, program_activation, read
from videoclip.errors import WeightsError


class Payload:
    """Runs a function when a careless reader opens it."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(mark: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that leave a mark when they are executed, and what they ask for."""
    import os
    import subprocess

    code = f"open({str(mark)!r}, 'w')"
    objects = {
        "system": Payload(os.system, f"touch {mark}"),
        "eval": Payload(eval, code),
        "exec": Payload(exec, code),
        "popen": Payload(subprocess.Popen, ["touch", str(mark)]),
        "in a list": {"weights": [1, 2, Payload(eval, code)]},
        "torch.load": Payload(torch.load, "other.pt"),
        "import": Payload(__import__, "antigravity"),
    }
    written = {name: pickle.dumps(value, protocol=2) for name, value in objects.items()}
    written["stack global"] = pickle.dumps(Payload(eval, code), protocol=4)
    written["dotted"] = b"\x80\x04\x8c\x05torch\x8c\x10serialization.os\x93\x94."
    asked = {"system": "system", "popen": "Popen", "torch.load": "load", "import": "__import__",
             "exec": "exec", "dotted": "serialization.os"}  # fmt: skip
    return {name: (data, asked.get(name, "eval")) for name, data in written.items()}


NAMES = list(payloads(Path("mark")))


def rewritten(source: Path, target: Path, change: Callable[[str], bytes | None], kind=0) -> Path:
    """A copy of a zip; `change` gives the new content of an entry, or None to leave it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            data = change(item.filename.partition("/")[2])
            if data is None:
                new.writestr(item.filename, old.read(item))
            else:
                new.writestr(item.filename, data, kind)
    return target


def replaced(source: Path, target: Path, entry: str, data: bytes, kind: int = 0) -> Path:
    """A copy of a zip with one entry changed."""
    return rewritten(source, target, lambda name: data if name == entry else None, kind)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "vit.pt"
    torch.manual_seed(0)
    write_archive(open_clip_model("vit"), path)
    return path


@pytest.mark.parametrize("visual", ["vit", "resnet"])
def test_an_archive_gives_every_tensor_to_the_bit(tmp_path, visual: str, monkeypatch) -> None:
    path = tmp_path / "model.pt"
    written = write_archive(open_clip_model(visual), path)
    for name in ("load", "script", "trace"):
        monkeypatch.delattr(torch.jit, name)
    assert is_torchscript(path)
    found = read(path)
    assert found.keys() == written.keys()
    assert {value.dtype for value in found.values()} == {torch.float16, torch.float32, torch.int64}
    for key, value in written.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key


class Scripted(nn.Module):
    """Attributes of all kinds that TorchScript pickles."""

    numbers: list[int]
    parts: dict[str, float]

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.parts = [1, 2], {"a": 1.0}
        self.shares, self.yes, self.where = [0.5], [True], torch.device("cpu")
        self.many = [torch.ones(2)]
        self.weight = nn.Parameter(torch.randn(3, 4).T)
        self.inner = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
        self.register_buffer("flag", torch.tensor([True, False]))
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("bytes", torch.arange(9, dtype=torch.uint8)[2:5])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.numbers[0] + self.shares[0] + self.many[0].sum()


def test_lists_views_and_odd_types_in_an_archive(tmp_path) -> None:
    module = Scripted()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(tmp_path / "scripted.pt"))
    found = read(tmp_path / "scripted.pt")
    assert found.keys() == module.state_dict().keys()
    for key, value in module.state_dict().items():
        assert torch.equal(found[key], value), key


def test_the_program_tells_the_activation(tmp_path, archive) -> None:
    write_archive(open_clip_model("vit", "gelu"), tmp_path / "gelu.pt")
    assert program_activation(archive) == "quick_gelu"
    assert program_activation(tmp_path / "gelu.pt") == "gelu"
    silent = rewritten(archive, tmp_path / "silent.pt", lambda n: b"" if ".py" in n else None)
    assert program_activation(silent) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_malicious_archive_is_refused_by_name(tmp_path, archive, name: str) -> None:
    mark = tmp_path / "executed"
    data, asked = payloads(mark)[name]
    path = replaced(archive, tmp_path / "evil.pt", "data.pkl", data)
    with pytest.raises(WeightsError, match=rf"asks for '[\w.]+\.{asked}'.*nothing was executed"):
        read(path)
    assert not mark.exists()


def test_what_an_archive_holds_beside_its_tensors_is_not_executed(tmp_path, archive) -> None:
    """The program, its constants and its notes on where each line came from."""
    mark = tmp_path / "executed"
    data, _ = payloads(mark)["system"]
    program = f"import os\nos.system('touch {mark}')\n".encode()

    def change(entry: str) -> bytes | None:
        if entry.endswith(".py"):
            return program
        return data if entry.endswith("pkl") and entry != "data.pkl" else None

    path = rewritten(archive, tmp_path / "evil.pt", change)
    assert read(path).keys() == read(archive).keys()
    assert program_activation(path) is None
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("name", NAMES)
def test_a_malicious_pickle_is_refused(tmp_path, name: str, suffix: str) -> None:
    mark = tmp_path / "executed"
    data, _ = payloads(mark)[name]
    plain = tmp_path / f"plain{suffix}"
    plain.write_bytes(data)
    torch.save({"weight": torch.ones(2)}, tmp_path / "good.pt")
    inside = replaced(tmp_path / "good.pt", tmp_path / f"inside{suffix}", "data.pkl", data)
    for path in (plain, inside):
        with pytest.raises(WeightsError) as error:
            read(path)
        assert str(path) in str(error.value)
        assert "weights_only" not in str(error.value)
        assert "trust" not in str(error.value)
    assert not mark.exists()


def test_a_refused_state_dict_names_what_it_asked_for(tmp_path) -> None:
    import os

    torch.save({"a": torch.ones(2), "b": Payload(os.system, "true")}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match=r"refused: it asks for '\w+\.system'"):
        read(tmp_path / "evil.pt")


def test_a_pickle_cannot_change_the_reader(tmp_path, archive) -> None:
    """BUILD sets attributes on whatever find_class returned; the next file must not notice."""
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n"
    defaults = b"(N}S'__defaults__'\n(I1\nI2\ntstb"
    list_class = b"c__torch__\nEvil\n(N}S'__setstate__'\nctorch.jit._pickle\nbuild_intlist\nstb"
    path = replaced(
        archive, tmp_path / "evil.pt", "data.pkl", tensor + defaults + list_class + b"."
    )
    with pytest.raises(WeightsError, match="damaged"):
        read(path)
    assert archives._tensor.__defaults__ is None
    assert "visual.proj" in read(archive)


def test_small_files_cannot_ask_for_much_memory(tmp_path, archive, monkeypatch) -> None:
    other = replaced(archive, tmp_path / "a.pt", "data/0", bytes(10**6))
    with pytest.raises(WeightsError, match=r"data/0 has 1000000 bytes, expected"):
        read(other)
    torch.save({"weight": torch.ones(2)}, tmp_path / "good.pt")
    monkeypatch.setattr(archives, "SLACK", 10**6)
    program = next(n for n in zipfile.ZipFile(archive).namelist() if n.endswith(".py"))
    entries = ["data.pkl", "data/0", program.partition("/")[2]]
    for source, entry in [*((archive, e) for e in entries), (tmp_path / "good.pt", "data/0")]:
        data = bytes(4 * 10**6)
        bomb = replaced(source, tmp_path / "bomb.pt", entry, data, zipfile.ZIP_DEFLATED)
        with pytest.raises(WeightsError, match=r"refused: its [\d,]+ bytes unpack to [\d,]+"):
            read(bomb)
    assert bomb.stat().st_size < 10**5
    original = zipfile.ZipFile(archive).read("vit/data/0")
    squeezed = replaced(archive, tmp_path / "b.pt", "data/0", original, zipfile.ZIP_DEFLATED)
    assert "visual.proj" in read(squeezed)
    huge = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    )
    size = len(original) // 4
    huge += b"J" + size.to_bytes(4, "little") + b"tQK\x00J\x00\x00\x00\x40\x85K\x00\x85\x89}tR."
    with pytest.raises(WeightsError, match=r"shape \(1073741824,\) is larger than its storage"):
        read(replaced(archive, tmp_path / "c.pt", "data.pkl", huge))


def test_a_pickle_that_claims_many_objects_gets_no_room_for_them(tmp_path, archive) -> None:
    """The reader in C asks for 32 GiB here; in a process of its own, which may have 8."""
    claims = b"\x80\x02Nr" + (2**31 - 1).to_bytes(4, "little") + b"."
    path = replaced(archive, tmp_path / "many.pt", "data.pkl", claims)
    program = (
        "import resource, sys, pathlib\n"
        "from videoclip.checkpoints.archives import read\n"
        "from videoclip.errors import WeightsError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))\n"
        "try:\n    read(pathlib.Path(sys.argv[1]))\n"
        "except WeightsError as error:\n    print(error)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )
    assert "it holds no module" in answer.stdout


def test_a_tree_of_modules_without_end_is_refused(tmp_path, archive) -> None:
    itself = b"\x80\x02c__torch__\nA\nq\x00)\x81q\x01}q\x02X\x01\x00\x00\x00bh\x01sb."
    path = replaced(archive, tmp_path / "loop.pt", "data.pkl", itself)
    with pytest.raises(WeightsError, match="holds more than 10000 modules"):
        read(path)


TEXT = b"hello world\n" * 9


@pytest.mark.parametrize("content", [b"", b"no", b"\x80\x02.", b"PK\x03\x04", bytes(5000), TEXT])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files_are_named(tmp_path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{path.name} is damaged") as error:
        read(path)
    assert ("(it is empty)" in str(error.value)) == (not content)
    assert "KeyError" not in str(error.value)


def test_truncated_archives_are_named(tmp_path, archive) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"cut\.pt is damaged"):
        read(path)


def test_a_file_of_something_else_is_named(tmp_path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="holds a list; expected tensors by name"):
        read(tmp_path / "list.pt")
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "old.pt").write_bytes(buffer.getvalue())
    assert torch.equal(read(tmp_path / "old.pt")["a"], torch.ones(2))


def test_what_trainings_save_beside_the_weights_is_taken_for_nothing(tmp_path) -> None:
    """Numbers and arrays of numpy, options: nothing of theirs is imported, and tensors are read."""
    beside = {
        "best": np.float64(71.5), "history": np.ones((2, 3)), "args": argparse.Namespace(a=[1]),
        "folder": tmp_path, "first": np.int64(3), "bound": [1].append,
    }  # fmt: skip
    torch.save({"state_dict": {"a": torch.ones(2)}, **beside}, tmp_path / "file.pt")
    found = read(tmp_path / "file.pt")
    assert torch.equal(found.pop("state_dict")["a"], torch.ones(2))
    assert {type(value) for value in found.values()} == {archives.Unread}
    assert found.keys() == beside.keys()
    assert not any(vars(value) for value in found.values())
