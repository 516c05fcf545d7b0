"""Training lists and folders: what is read, and what is said of what cannot be."""

import os
from unicodedata import normalize

import pytest
from in_process import refused

from concat_id.data.records import inspect_records, read_records
from concat_id.files.json_files import parse_list


def test_entries_become_records(folder, monkeypatch):
    for name in ("many/2.png", "many/1.jpg", "many/notes.txt", "masks/1.png", "masks/2.png"):
        folder.image(name) if not name.endswith("txt") else (folder.path / name).write_text("x")
    path = folder.list(
        folder.entry(),
        folder.entry(image="a.png @@ many", mask_path="b.png@@masks"),
        folder.entry(clip=str(folder.path / "good.mp4"), caption=' A  "man",\n日本語] speaks. '),
    )
    first, second, third = read_records([path])
    assert (first.video, first.images, first.masks, first.num_refs) == (folder.path / "good.mp4", ((folder.path / "a.png",),), (), 1)
    assert [[file.name for file in person] for person in second.images] == [["a.png"], ["1.jpg", "2.png"]]
    assert [[file.name for file in person] for person in second.masks] == [["b.png"], ["1.png", "2.png"]]
    assert third.caption == 'A "man", 日本語] speaks.'
    assert [record.source for record in (first, second)] == [f"{path}:2", f"{path}:7"]


def test_references_have_kinds_and_may_have_no_mask(folder):
    entry = folder.entry(image="a.png@@b.png@@c.png", mask_path="b.png@@ @@", kind="face@@clothes@@ background")
    plain, mixed = read_records([folder.list(folder.entry(), entry)])
    assert plain.kinds == ("face",) and mixed.kinds == ("face", "clothes", "background")
    assert mixed.masks == ((folder.path / "b.png",), (), ())


@pytest.mark.parametrize("mask", ["a.png", "none.png", "~nosuchuser/a.png"])
def test_one_mask_for_anything_but_one_image_is_not_read(mask, folder):
    folder.image("many/1.png"), folder.image("many/2.png")
    entries = [folder.entry(image=image, mask_path=mask) for image in ("a.png@@b.png", "many", "")]
    path = folder.list(*entries, folder.entry(mask_path="b.png"), folder.entry(image="many", mask_path="many"))
    records, problems, notes = inspect_records([path])
    assert [len(record.masks) for record in records] == [0, 0, 0, 1, 1] and problems == []
    assert len(notes) == 1 and notes[0].startswith(f"{path}: mask_path: in 3 entries not read, as in the original"), notes


def test_several_lists_follow_one_another(folder):
    lists = [folder.list(folder.entry(caption=str(number)), name=f"{number}.json") for number in (2, 1)]
    assert [record.caption for record in read_records(lists)] == ["2", "1"]


def test_a_comma_too_many_is_accepted_with_a_warning(capsys):
    for text, where in {'[{"a": 1},]': 10, '[{"a": 1,\n }]': 9, '[{"a": [1, 2,\n ]}]': 13}.items():
        assert len(parse_list(text, "l.json")) == 1
        assert f"l.json: line 1, column {where}: a comma" in capsys.readouterr().err


@pytest.mark.parametrize("text, words", [
    ('[{"a": 1}\n {"b": 2}]', "line 2, column 2: not valid JSON: expected \",\" or \"]\" after an entry, found '{\"b\": 2}]'"),
    ('[{"a": 1}', "line 1, column 10.*found 'the end of the file'"),
    ('{"a": 1}', r"found an object, expected a list; put \[ \] around it"), ("3", "line 1, column 1.*the start of a list"),
    (" \n", "the file is empty, expected JSON"),
    ("[] []", "line 1, column 4.*nothing after the list"),
    ('[{"a": 1, "a": 2}]', "line 1.*'a' is given twice"),
    ('{"a": 1}\n\n{"a": 2}\n', r"found one object a line \(JSON Lines\), expected a JSON list"),
    ('video_path,caption,image_path\na.mp4,"x",a.png\n', "found a table, expected a JSON list of objects; convert it"),
])  # fmt: skip
def test_broken_json_names_line_column_and_text(text, words, tmp_path):
    (tmp_path / "l.json").write_text(text)
    refused(f"^{tmp_path / 'l.json'}: {words}", read_records, [tmp_path / "l.json"])


@pytest.mark.parametrize("change, words", [
    ({"caption": 1, "image_path": "none.png"}, "caption: found 1, expected text; image_path: found no file"),
    ({"image_path": "none.png"}, "image_path: found no file 'none.png' beside the list or in the working folder, expected an image"),
    ({"image_path": "C:\\data\\a.png"}, r"image_path: found a path of Windows 'C:\\data\\a.png', expected an image"),
    ({"caption": "half \ud83d"}, "caption: found \"half \ud83d\", which has half of a character"),
    ({"video_path": "pipe"}, "video_path: found a named pipe 'pipe', expected a video"),
    ({"image_path": ["a.png", "b.png"]}, 'write several people as "a.png@@b.png"'),
    ({"image_path": "empty"}, "no images in the folder 'empty'"),
    ({"mask_path": "a.png@@b.png"}, "mask_path: found 2 people, expected 1"),
    ({"mask_path": "none.png"}, "mask_path: found no file 'none.png'"),
    ({"image_path": "many", "mask_path": "masks"}, "mask_path: found no mask for '2.png'"),
    ({"kind": "hat"}, "kind: found 'hat', expected face, clothes or background"),
    ({"kind": "face@@clothes"}, "kind: found 2, expected 1 as in image_path"),
])  # fmt: skip
def test_each_wrong_entry_is_told_in_one_line(change, words, folder):
    (folder.path / "empty").mkdir()
    os.mkfifo(folder.path / "pipe")
    folder.image("many/1.png"), folder.image("many/2.png"), folder.image("masks/1.png")
    path = folder.list(folder.entry(), folder.entry() | change)
    records, problems, _ = inspect_records([path])
    assert len(records) == 1 and len(problems) == 1
    assert problems[0].startswith(f"{path}:7: ") and words in problems[0] and "\n" not in problems[0]


def test_problems_are_collected_and_the_first_shown(folder, capsys):
    entries = [{"video_path": "good.mp4", "captoin": "A person talks."}, 3, *[folder.entry(clip=f"{number}.mp4") for number in range(4)]]
    told = r'caption: missing, expected text \(is "captoin" meant.*image_path: missing.*found 3, expected an entry.*and 3 more; see all of'
    told += r" them with `python sat/check_dataset.py '.*/my list.json'`$"
    refused(told, read_records, [folder.list(*entries, name="my list.json")])
    assert "captoin: in 1 entries and not read; the nearest key that is read is caption" in capsys.readouterr().err


def test_what_is_no_list_is_told(tmp_path, folder):
    for path, words in {
        tmp_path / "none.json": "no such file", folder.list(): "no clips found",
        folder.path / "good.mp4": "found a video, expected a JSON list or a folder", folder.path / "a.png": "found an image",
    }.items():  # fmt: skip
        refused(words, read_records, [path])


def test_a_folder_is_a_list(folder):
    data = folder.path / "data"
    for name in ("one.png", "many/b.png", "many/a.png", "two/2/x.png", "two/10/x.png", "two.masks/2/x.png", "two.masks/10/x.png",
                 "sub/deep/one.jpg", "many/c.gif", "many/.ipynb_checkpoints/a.png", "two/.@__thumb/x.png"):  # fmt: skip
        folder.image(f"data/{name}")
    for name in ("one", "many", "two", "sub/deep/one", "\u00e9"):
        (data / f"{name}.mp4").write_bytes(b"x")
        (data / f"{normalize('NFD', name)}.txt").write_text(f"{name}.\nThe same in other words.\n")
    folder.image("data/e\u0301.png")
    (data / "one.txt").write_text("\n one\u2028\x85in words.\r\nThe same in other words.\n")
    many, one, deep, two, accent = read_records([data])
    assert (accent.caption, accent.images) == ("\u00e9.", ((data / "e\u0301.png",),)), "in another form of Unicode"
    assert (deep.caption, deep.images) == ("sub/deep/one.", ((data / "sub" / "deep" / "one.jpg",),))
    assert (one.caption, one.images) == ("one in words.", ((data / "one.png",),))
    assert [file.name for file in many.images[0]] == ["a.png", "b.png"] and many.num_refs == 1
    assert [person[0].parent.name for person in two.images] == ["2", "10"] and len(two.masks) == 2
    (data / "lonely.mp4").write_bytes(b"x")
    (data / "10²").mkdir()
    records, problems, _ = inspect_records([data])
    assert len(records) == 5 and len(problems) == 1 and f"lonely.mp4: image_path: found no file '{data}/lonely.png'" in problems[0]


@pytest.mark.parametrize("above", ["data", "my_videos/data", "videos/data"])  # the original replaces "videos" there as well
@pytest.mark.parametrize("named", ["", "videos"])
def test_a_folder_of_the_original_is_a_list(folder, above, named):
    data = folder.path / above
    for name in ("images/one/2.png", "images/one/1.jpg", "images/one/x.gif", "images/part/three/1.png"):
        folder.image(f"{above}/{name}")
    for name, content in {
        "videos/one.mp4": "x", "labels/one.txt": "one.\r\nTwo.", "videos/two.mp4": "x", "labels/two.txt": "", "videos/part/three.mp4": "x",
    }.items():  # fmt: skip
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_text(content)
    (one, three), problems, notes = inspect_records([data / named])
    assert (one.video, one.caption, one.masks) == (data / "videos" / "one.mp4", "one.", ())
    assert [file.name for file in one.images[0]] == ["1.jpg", "2.png"]
    assert (three.caption, three.images) == ("", ((data / "images" / "part" / "three" / "1.png",),))
    assert len(problems) == 1 and f"image_path: found no file '{data / 'images' / 'two'}'" in problems[0]
    assert len(notes) == 1 and "1 entries have an empty caption" in notes[0]


def test_the_originals_files_are_found_wherever_videos_stands_in_a_path(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my_images/one_images/1.png", "set/a.png"):
        folder.image(name)
    for name in ("my_videos/one_videos.mp4", "my_labels/one_labels.txt", "set/a.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one.")
    (one,), _, _ = inspect_records(["my_videos"])
    assert (one.caption, one.images) == ("one.", ((tmp_path / "my_images" / "one_images" / "1.png",),))
    (tmp_path / "linked").mkdir()
    for name in ("videos", "other"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "set")
    assert [str(record.video.relative_to(tmp_path)) for record in inspect_records(["linked"])[0]] == ["linked/videos/a.mp4"]
    monkeypatch.chdir(tmp_path / "set")
    assert len(inspect_records(["."])[0]) == 1


def test_entries_of_the_original_are_taken_with_a_note(folder, capsys):
    """Other keys, empty captions, no image (the clip's first frame stands for it), no mask."""
    path = folder.list(folder.entry(caption="", id=7, fps=24), folder.entry(image="", mask_path="", captoin="x", fps=25))
    first, second = read_records([path])
    assert first.caption == "" and first.masks == () and not first.shows_itself
    assert second.shows_itself and second.images == ((folder.path / "good.mp4",),) and second.masks == ()
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2].removeprefix(f"{path}: ").partition(";")[0] for line in said] == [
        "id: in 1 entries and not read", "fps: in 2 entries and not read", "captoin: in 1 entries and not read",
        "1 entries have an empty caption, so that they are trained without words",
    ]  # fmt: skip
