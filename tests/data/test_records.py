"""Training lists and folders: what is read, and what is said of what cannot be."""

import os

import pytest

from concat_id.data.records import inspect_records, read_records
from concat_id.errors import UserError
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


def test_relative_paths_start_at_the_list_then_here(folder, monkeypatch, tmp_path_factory):
    here = tmp_path_factory.mktemp("here")
    (here / "elsewhere.mp4").write_bytes(b"x")
    (here / "good.mp4").write_bytes(b"x")
    monkeypatch.chdir(here)
    records = read_records([folder.list(folder.entry(), folder.entry(clip="elsewhere.mp4"))])
    assert [record.video.resolve() for record in records] == [folder.path / "good.mp4", here / "elsewhere.mp4"]


def test_several_lists_follow_one_another(folder):
    lists = [folder.list(folder.entry(caption=str(number)), name=f"{number}.json") for number in (2, 1)]
    assert [record.caption for record in read_records(lists)] == ["2", "1"]


@pytest.mark.parametrize(
    "text, where",
    [('[{"a": 1},]', "line 1, column 10"), ('[{"a": 1,\n }]', "line 1, column 9"), ('[{"a": [1, 2,\n ]}]', "line 1, column 13")],
)
def test_a_comma_too_many_is_accepted_with_a_warning(text, where, capsys):
    assert len(parse_list(text, "l.json")) == 1
    assert f"l.json: {where}: a comma" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, words",
    [
        ('[{"a": 1}\n {"b": 2}]', "line 2, column 2: not valid JSON: expected \",\" or \"]\" after an entry, found '{\"b\": 2}]'"),
        ('[\n {"a" 1}\n]', "line 2, column 7"),
        ('[{"a": "b}]', "line 1, column 8"),
        ('[{"a": 1}', "found 'the end of the file'"),
        ("[,]", "line 1, column 2"),
        ("", "line 1, column 1"),
        ('{"a": 1}', "the start of a list"),
        ("[] []", "nothing after the list"),
        ('[{"a": 1, "a": 2}]', "'a' is given twice"),
    ],
)
def test_broken_json_names_line_column_and_text(text, words, tmp_path):
    path = tmp_path / "l.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_records([path])
    assert words in str(error.value) and str(error.value).startswith(f"{path}: line ") and "\n" not in str(error.value)


@pytest.mark.parametrize("text, words", [
    ('{"a": 1}\n\n{"a": 2}\n', "one object a line (JSON Lines), expected a JSON list"),
    ('video_path,caption,image_path\na.mp4,"x",a.png\n', "found a table, expected a JSON list of objects; convert it"),
    ("video_path\tcaption\na.mp4\tx\n", "found a table"),
])  # fmt: skip
def test_other_kinds_of_lists_are_named(text, words, tmp_path):
    (tmp_path / "l.json").write_text(text)
    with pytest.raises(UserError) as error:
        read_records([tmp_path / "l.json"])
    assert words in str(error.value)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"caption": None}, "caption: found null, expected text"),
        ({"caption": 1, "image_path": "none.png"}, "caption: found 1, expected text; image_path: found no file"),
        ({"caption": "half \ud83d"}, "caption: found \"half \ud83d\", which has half of a character"),
        ({"video_path": ""}, 'video_path: found "", expected text that is not empty'),
        ({"video_path": "a\0b.mp4"}, "video_path: found a zero byte"),
        ({"video_path": "~nobody-of-this-name/a.mp4"}, "no user is called 'nobody-of-this-name'"),
        ({"video_path": "x" * 300 + ".mp4"}, "video_path: found a name that is too long"),
        ({"video_path": "pipe"}, "video_path: found a named pipe 'pipe', expected a video"),
        ({"image_path": "circle"}, "image_path: found a symbolic link that leads in a circle 'circle', expected an image"),
        ({"image_path": "/dev/zero"}, "image_path: found a device '/dev/zero'"),
        ({"image_path": ["a.png", "b.png"]}, 'write several people as "a.png@@b.png"'),
        ({"image_path": "a.png@@none.png"}, "image_path: found no file 'none.png'"),
        ({"image_path": "a.png@@"}, "image_path: found nothing ''"),
        ({"image_path": "empty"}, "no images in the folder 'empty'"),
        ({"video_path": "none.mp4"}, "video_path: found no file 'none.mp4'"),
        ({"video_path": "empty"}, "video_path: found a folder"),
        ({"mask_path": "a.png@@b.png"}, "mask_path: found 2 people, expected 1"),
        ({"image_path": "many", "mask_path": "a.png"}, "mask_path: found no mask for '1.png'"),
    ],
)
def test_each_wrong_entry_is_told_in_one_line(change, words, folder):
    (folder.path / "empty").mkdir()
    os.mkfifo(folder.path / "pipe")
    (folder.path / "circle").symlink_to("circle")
    folder.image("many/1.png"), folder.image("many/2.png")
    path = folder.list(folder.entry(), folder.entry(**change) if "video_path" not in change else folder.entry() | change)
    if "image_path" in change:
        path = folder.list(folder.entry(), folder.entry() | change)
    records, problems, _ = inspect_records([path])
    assert len(records) == 1 and len(problems) == 1
    assert problems[0].startswith(f"{path}:7: ") and words in problems[0] and "\n" not in problems[0]


def test_problems_are_collected_and_the_first_shown(folder):
    entries = [{"video_path": "good.mp4"}, 3, *[folder.entry(clip=f"{number}.mp4") for number in range(4)]]
    with pytest.raises(UserError, match=r"caption: missing.*image_path: missing.*found 3, expected an entry.*and 3 more; see all of them"):
        read_records([folder.list(*entries)])


def test_lists_that_are_not_there_or_empty(tmp_path, folder):
    for path, words in {tmp_path / "none.json": "no such file", folder.list(): "no clips found"}.items():
        with pytest.raises(UserError, match=words):
            read_records([path])
    (tmp_path / "l.json").write_bytes(b"\xff\xfe[")
    with pytest.raises(UserError, match="UTF-8"):
        read_records([tmp_path / "l.json"])


def test_a_folder_is_a_list(folder):
    data = folder.path / "data"
    for name in ("one.png", "many/b.png", "many/a.png", "two/2/x.png", "two/10/x.png", "two.masks/2/x.png", "two.masks/10/x.png"):
        folder.image(f"data/{name}")
    for name in ("one", "many", "two"):
        (data / f"{name}.mp4").write_bytes(b"x")
        (data / f"{name}.txt").write_text(f"{name}.\n")
    many, one, two = read_records([data])
    assert (one.caption, one.images) == ("one.", ((data / "one.png",),))
    assert [file.name for file in many.images[0]] == ["a.png", "b.png"] and many.num_refs == 1
    assert [person[0].parent.name for person in two.images] == ["2", "10"] and len(two.masks) == 2
    (data / "lonely.mp4").write_bytes(b"x")
    (data / "10²").mkdir()
    records, problems, _ = inspect_records([data])
    assert len(records) == 3 and "lonely.txt: found no such file, expected the caption" in problems[0]


def test_a_folder_of_the_original_is_a_list(folder):
    data = folder.path / "data"
    for name in ("images/one/2.png", "images/one/1.jpg"):
        folder.image(f"data/{name}")
    for name, content in {"videos/one.mp4": "x", "labels/one.txt": "one.\n", "videos/two.mp4": "x", "labels/two.txt": ""}.items():
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_text(content)
    (one,), problems, notes = inspect_records([data])
    assert (one.video, one.caption, one.masks) == (data / "videos" / "one.mp4", "one.", ())
    assert [file.name for file in one.images[0]] == ["1.jpg", "2.png"]
    assert len(problems) == 1 and f"image_path: found no file '{data / 'images' / 'two'}'" in problems[0] and notes == []


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


@pytest.mark.parametrize("name, kind", [("good.mp4", "video"), ("a.png", "image")])
def test_a_clip_is_no_list(folder, name, kind):
    with pytest.raises(UserError, match=f"found a {kind}, expected a JSON list or a folder"):
        read_records([folder.path / name])
