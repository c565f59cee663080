"""The forms in which data sets are distributed, made small: those that no real file is here for."""

import json
import pickle
from pathlib import Path

import pytest

from data_prep.annotations import AnnotationError
from data_prep.entries import Annotations, Entry
from data_prep.prepare import DATA_SETS, prepare


def entries_of(name: str, folder: Path, labels: Path | None = None) -> dict[str, list[Entry]]:
    annotations = Annotations(folder, labels)
    found = prepare(DATA_SETS[name], annotations, None, Path("v"), any_counts=True)
    return {part.suffix: part.entries for part in found}


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        name = name.replace("__", ".")
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text)
    return folder


def test_msrvtt_with_captions(tmp_path: Path) -> None:
    sentences = [
        {"video_id": f"video{video}", "caption": f" caption {video} {number} ", "sen_id": number}
        for video in range(4)
        for number in range(2)
    ]
    videos = [
        {"video_id": f"video{number}", "split": split}
        for number, split in enumerate(["train", "train", "validate", "test"])
    ]
    folder = write(tmp_path, MSRVTT_data__json={"videos": videos, "sentences": sentences})
    [entries] = entries_of("msrvtt-full", folder).values()
    assert [entry.split for entry in entries] == ["train", "train", "val", "test"]
    assert entries[3].captions == ("caption 3 0", "caption 3 1")
    (folder / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo2\n")
    (folder / "MSRVTT_JSFUSION_test.csv").write_text(
        'key,vid_key,video_id,sentence\nret0,msr3,video3,"one, two"\n'
    )
    [entries] = entries_of("msrvtt-9k", folder).values()
    assert [(e.video_id, e.split) for e in entries] == [
        ("video0", "train"), ("video2", "train"), ("video3", "test"),
    ]  # fmt: skip
    assert entries[2].captions == ("one, two",)
    (folder / "MSRVTT_train.9k.csv").write_text("video_id\nvideo9\n")
    with pytest.raises(AnnotationError, match="line 2: video9 has no caption"):
        entries_of("msrvtt-9k", folder)


def test_a_trained_and_tested_video_is_reported_and_only_tested(tmp_path: Path) -> None:
    write(
        tmp_path,
        MSRVTT_train__9k__csv="video_id\nvideo1\nvideo3\nvideo1\n",
        MSRVTT_JSFUSION_test__csv="video_id,sentence\nvideo3,a dog\n",
    )
    [part] = prepare(
        DATA_SETS["msrvtt-9k"], Annotations(tmp_path), None, Path("v"), any_counts=True
    )
    assert [(e.video_id, e.split) for e in part.entries] == [
        ("video1", "train"),
        ("video3", "test"),
    ]
    assert part.report["in_two_splits"] == [
        "video3: train and test (MSRVTT_train.9k.csv, line 3; MSRVTT_JSFUSION_test.csv, line 2); "
        "kept in test"
    ]
    assert part.report["duplicated"] == [
        "video1 (MSRVTT_train.9k.csv, line 2; MSRVTT_train.9k.csv, line 4)"
    ]


def test_msvd_with_clip4clips_pickle(tmp_path: Path) -> None:
    folder = write(tmp_path, test_list__txt="abc_1_2\n-x_y_3_10\n")
    captions = {"abc_1_2": [["a", "dog"], ["a", "cat"]], "-x_y_3_10": [["birds"]]}
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps(captions))
    [entries] = entries_of("msvd", folder).values()
    assert [e.captions for e in entries] == [("a dog", "a cat"), ("birds",)]
    assert [e.source for e in entries] == ["abc", "-x_y"]


def test_a_pickle_that_would_run_a_program_is_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    folder = write(tmp_path, test_list__txt="abc_1_2\n")
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps({"abc_1_2": Attack()}))
    with pytest.raises(AnnotationError, match=r"refused: it asks for .*Path.*nothing was executed"):
        entries_of("msvd", folder)
    assert not (tmp_path / "executed").exists()
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps({"a": [["b"]]})[:-4])
    with pytest.raises(AnnotationError, match="damaged"):
        entries_of("msvd", folder)


LSMDC = "0001_American_Beauty_00.00.51.926-00.00.54.129"


def test_lsmdc(tmp_path: Path) -> None:
    row = f'{LSMDC}\t00.00.51\t00.00.54\t00.00.51\t00.00.54\tShe says "no\n'
    write(tmp_path, LSMDC16_challenge_1000_publictect__csv=row)
    [[entry]] = entries_of("lsmdc", tmp_path).values()
    assert entry.captions == ('She says "no',)
    assert entry.files[0] == f"0001_American_Beauty/{LSMDC}"
    assert entry.source == "0001_American_Beauty"
    write(tmp_path, LSMDC16_annos_val__csv=row + row.replace("\t", " "))
    with pytest.raises(
        AnnotationError, match=r"LSMDC16_annos_val.csv, line 2: 1 columns with tabs"
    ):
        entries_of("lsmdc", tmp_path)


def test_activitynet_takes_the_listed_ids_and_joins_the_sentences(tmp_path: Path) -> None:
    video = {"duration": 3, "timestamps": [[0, 1], [1, 3]], "sentences": [" One. ", "Two."]}
    write(tmp_path, val_1__json={"v_abc": video, "v_def": video}, val_ids__json=["v_abc"])
    [[entry]] = entries_of("activitynet", tmp_path).values()
    assert (entry.video_id, entry.captions, entry.split) == ("v_abc", ("One. Two.",), "test")
    assert entry.files == ("v_abc", "abc")
    write(tmp_path, val_1__json={"v_abc": video | {"timestamps": [[0, 1]]}})
    with pytest.raises(AnnotationError, match="v_abc has not as many timestamps as sentences"):
        entries_of("activitynet", tmp_path)
    write(tmp_path, val_1__json={"v_abc": video | {"duration": float("nan")}})
    with pytest.raises(AnnotationError, match="line 1, character 11: NaN is no number in JSON"):
        entries_of("activitynet", tmp_path)


def test_didemo_with_and_without_clip4clips_list(tmp_path: Path) -> None:
    rows = [
        {"video": "u_1_a.mov", "description": "first", "times": []},
        {"video": "u_2_b.avi", "description": "other", "times": []},
        {"video": "u_1_a.mp4", "description": "second", "times": []},
    ]
    write(tmp_path, test_data__json=rows)
    [entries] = entries_of("didemo", tmp_path).values()
    assert [(e.video_id, e.captions) for e in entries] == [
        ("u_1_a", ("first second",)), ("u_2_b", ("other",)),
    ]  # fmt: skip
    assert entries[0].end == 31.0
    write(tmp_path, test_list__txt="u_1_a.mp4\n")
    [[entry]] = entries_of("didemo", tmp_path).values()
    assert (entry.video_id, entry.captions) == ("u_1_a", ("second",))
    write(tmp_path, test_list__txt="u_1_a.mp4\nu_9_c.mp4\n")
    with pytest.raises(AnnotationError, match=r"test_list.txt, line 2: u_9_c.mp4 has no descript"):
        entries_of("didemo", tmp_path)


def test_vatex_with_the_lists_of_retrieval_and_without(tmp_path: Path) -> None:
    clips = [{"videoID": f"id{n}_000001_000011", "enCap": [f"cap {n}"]} for n in range(3)]
    folder = write(
        tmp_path,
        **{"vatex_training_v1.0__json": clips[:1], "vatex_validation_v1.0__json": clips[1:]},
    )
    [entries] = entries_of("vatex", folder).values()
    assert [e.split for e in entries] == ["train", "val", "val"]
    write(folder, test_list__txt="id2_000001_000011\n", val_list__txt="id1_000001_000011\n")
    [entries] = entries_of("vatex", folder).values()
    assert {e.split: e.captions for e in entries} == {"val": ("cap 1",), "test": ("cap 2",)}
    assert {e.source for e in entries} == {"id1", "id2"}
    write(folder, ref_captions__json={"id2_000001_000011": ["x", "y"]})
    with pytest.raises(
        AnnotationError, match=r"val_list.txt, line 1: id1_000001_000011 has no capt"
    ):
        entries_of("vatex", folder)


def test_kinetics_official_tables(tmp_path: Path) -> None:
    header = "label,youtube_id,time_start,time_end,split\n"
    write(
        tmp_path,
        train__csv=header + '"tai chi",aaaaaaaaaaa,5,15,train\n',
        test__csv=header,
        validate__csv=header + "yoga,bbbbbbbbbbb,1,11,val\nyoga,aaaaaaaaaaa,20,30,val\n",
    )
    annotations = Annotations(tmp_path)
    [part] = prepare(DATA_SETS["kinetics700"], annotations, None, Path("v"), any_counts=True)
    assert [(e.video_id, e.label, e.split) for e in part.entries] == [
        ("aaaaaaaaaaa_000005_000015", "tai chi", "train"),
        ("bbbbbbbbbbb_000001_000011", "yoga", "test"),
        ("aaaaaaaaaaa_000020_000030", "yoga", "test"),
    ]
    [leak] = part.report["leaks"]["sources"]
    assert leak.startswith("aaaaaaaaaaa: train")
    assert part.report["notes"] == [
        "test.csv is not read: what is published is measured on validation clips"
    ]
    with pytest.raises(AnnotationError, match="2 classes, published are 700"):
        prepare(DATA_SETS["kinetics700"], annotations, None, Path("v"))
    write(tmp_path, train__csv=header + "yoga,short,1,11,val\n")
    with pytest.raises(
        AnnotationError, match="line 2: 'short'; an id at YouTube has 11 characters"
    ):
        entries_of("kinetics700", tmp_path)


def test_ucf101_official_lists(tmp_path: Path) -> None:
    names = [f"Class{chr(65 + n // 26)}{chr(65 + n % 26)}" for n in range(101)]
    write(
        tmp_path,
        classInd__txt="".join(f"{n} {name}\n" for n, name in enumerate(names, start=1)),
        trainlist01__txt="".join(f"{c}/v_{c}_g08_c01.avi {n + 1}\n" for n, c in enumerate(names)),
        testlist01__txt="".join(f"{c}/v_{c}_g01_c01.avi\n" for c in names),
    )
    found = entries_of("ucf101", tmp_path)
    assert list(found) == ["-split1"]
    assert found["-split1"][0].label == "ClassAA"
    assert found["-split1"][0].source == "ClassAA_g08"
    assert [e.split for e in found["-split1"]] == ["train"] * 101 + ["test"] * 101
    text = (tmp_path / "trainlist01.txt").read_text()
    write(tmp_path, trainlist01__txt=text.replace("_c01.avi 7\n", "_c01.avi 7\nClassAG/v_ClassAG_"
          "g09_c01.avi 8\nClassAG/v_ClassAG_g09_c02.avi 7\n"))  # fmt: skip
    with pytest.raises(AnnotationError, match="line 8: the class is 7, and elsewhere ClassAG is 6"):
        entries_of("ucf101", tmp_path)


def test_hmdb51_official_lists(tmp_path: Path) -> None:
    folder = tmp_path / "splits"
    folder.mkdir()
    for number in (1, 2, 3):
        lines = [f"film{n}_brush_hair_x_{n}.avi {(n + number) % 3} \n" for n in range(3)]
        (folder / f"brush_hair_test_split{number}.txt").write_text("".join(lines))
    found = entries_of("hmdb51", folder)
    assert list(found) == ["-split1", "-split2", "-split3"]
    assert [(e.video_id, e.split, e.label, e.source) for e in found["-split1"]] == [
        ("brush_hair/film0_brush_hair_x_0", "train", "brush hair", "film0"),
        ("brush_hair/film1_brush_hair_x_1", "test", "brush hair", "film1"),
    ]
    (folder / "brush_hair_test_split2.txt").write_text("a.avi 3\n")
    with pytest.raises(
        AnnotationError, match=r"split2.txt, line 1: 'a.avi 3'; expected NAME.avi and"
    ):
        entries_of("hmdb51", folder)


def test_something_something_says_class_and_caption(tmp_path: Path) -> None:
    row = {"id": "7", "label": "holding a cup", "template": "Holding [something]"}
    write(tmp_path, validation__json=[row])
    [[entry]] = entries_of("ssv2", tmp_path).values()
    assert (entry.label, entry.captions) == ("Holding something", ("holding a cup",))
    write(tmp_path, validation__json=[row, {"id": "8", "label": "x"}])
    with pytest.raises(AnnotationError, match="the entry has no 'template'; it has id, label"):
        entries_of("ssv2", tmp_path)


def test_class_folders(tmp_path: Path) -> None:
    for name in ("train/run/a.mp4", "train/jump/b.avi", "Validation/run/c/d.mp4", "test/run/e.mkv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    [entries] = entries_of("folders", tmp_path).values()
    assert {(e.video_id, e.split, e.label) for e in entries} == {
        ("train/run/a", "train", "run"), ("train/jump/b", "train", "jump"),
        ("Validation/run/c/d", "val", "run"), ("test/run/e", "test", "run"),
    }  # fmt: skip
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "f.mp4").touch()
    with pytest.raises(AnnotationError, match="1 of 5 clips have no split, such as extra/f"):
        entries_of("folders", tmp_path)


def test_a_table_of_paths_and_captions(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text(
        'path,caption,start,end,score\na.mp4,"a dog, running",,,1\na.mp4,another,,,2\n'
        "b.mp4,a cat,1,2.5,3\nb.mp4,a bird,2.5,4,3\n"
    )
    [entries] = entries_of("table", table).values()
    assert [(e.video_id, e.captions, e.start, e.end) for e in entries] == [
        ("a.mp4", ("a dog, running", "another"), None, None),
        ("b.mp4#1-2.5", ("a cat",), 1.0, 2.5),
        ("b.mp4#2.5-4", ("a bird",), 2.5, 4.0),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,caption\nx,y\n", "line 1: there is no column 'path'; there are name, caption"),
        ("path,split\nx,holdout\n", "line 2: the split 'holdout'; known: train, val, test"),
        ("path,start\nx,soon\n", "line 2: start is 'soon'; expected seconds"),
        ("path,end\nx,0\n", "line 2: the clip starts at 0 s and ends at 0.0 s"),
        ("path,label\nx,a\nx,b\n", "line 3: x has label 'b' here and 'a' above"),
        ("path,file\nx,y\n", "line 1: the columns path and file both hold the path"),
        ('path,caption\nx,"y\n', "line 2: unexpected end of data"),
        ("", "is empty"),
    ],
)
def test_a_wrong_table_is_explained(text: str, message: str, tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text(text)
    with pytest.raises(AnnotationError, match=message):
        entries_of("table", table)
