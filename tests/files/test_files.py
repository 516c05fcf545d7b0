"""The doors to the disk: paths, regular files alone, JSON of any content, whole files and folders, one writer at a time."""

import errno
import fcntl
import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import LOCKING, another_process, no_file_larger_than, refused

from concat_id.errors import LONGEST, UserError, one_line
from concat_id.files.json_files import parse_json, parse_list, read_json, recall_json, write_json
from concat_id.files.locks import InUseError, locked
from concat_id.files.paths import (
    check_writable,
    copies_among,
    expand_path,
    folder_written_whole,
    kind_of,
    only_writer,
    own_name,
    read_text,
    remove_partial_files,
    resolve_path,
    safe_name,
    visible_files,
    write_text,
    written_whole,
)

QUICK = settings(max_examples=150, deadline=None, derandomize=True)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.text("\udce9\udcffa", max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
PIECES = st.sampled_from([*'[]{},:" \n\\', '"a"', "1", "-", "9" * 400, "null", "1e999", '"\\ud83d"', "[" * 70, ",]", ",}", "//", "é", "\0"])


@pytest.fixture
def places(tmp_path):
    """A path of each kind."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "lost").symlink_to("nowhere")
    (tmp_path / "link").symlink_to("file")
    return tmp_path


KINDS = {
    "file": "a file", "link": "a file", "folder": "a folder", "pipe": "a named pipe", "/dev/zero": "a device", "nowhere": "no such file",
    "file/x": "no such file", "circle": "a symbolic link that leads in a circle", "lost": "a symbolic link that leads nowhere",
    "x" * 300: "a name that is too long", "a\0b": "a path that no file can have",
}  # fmt: skip


@pytest.mark.parametrize("name, kind", KINDS.items(), ids=range(len(KINDS)))
def test_what_is_no_regular_file_is_told_and_not_opened(places, name, kind):
    assert kind_of(places / name) == kind
    if kind == "a file":
        assert read_text(places / name, "a list") == "text"
        return
    refused(f"found {kind}, expected a list; look again$", read_text, places / name, "a list", "look again")


def test_paths_are_what_users_mean(tmp_path, monkeypatch):
    """`~` everywhere; beside the file that names them, then the working folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_path("~/a/b") == tmp_path / "a" / "b" and expand_path("a~") == Path("a~")
    wrong = {"~nobody-of-this-name/x": "key: ~nobody.*: no user is called", "a\0b": "key: .*a zero byte",
             "~\0": "key: .*a zero byte", "a\ud83d": "key: found char"}  # fmt: skip
    for text, words in wrong.items():
        refused(words, expand_path, text, "key")
    with monkeypatch.context() as ascii_locale:
        ascii_locale.setattr(os, "fsencode", lambda path: path.encode("ascii"))
        refused("key: .*'\u4e00' that this locale cannot write; set LC_ALL=C.UTF-8", expand_path, "\u4e00", "key")
    for folder in ("beside", "here"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "both").touch()
    (tmp_path / "here" / "one").touch()
    monkeypatch.chdir(tmp_path / "here")
    assert resolve_path("both", tmp_path / "beside") == tmp_path / "beside" / "both"
    assert [resolve_path(name, tmp_path / "beside") for name in ("one", "none")] == [Path("one"), Path("none")]
    (tmp_path / "beside" / "e\u0301" / "\u00e9").mkdir(parents=True)
    for name in ("\u00e9/e\u0301", "e\u0301/\u00e9"):
        assert resolve_path(name, tmp_path / "beside") == tmp_path / "beside" / "e\u0301" / "\u00e9", "whatever form accents have"
    assert resolve_path("\u00e9/" * 3000) == Path("\u00e9/" * 3000)
    assert resolve_path("configs/mini.yaml").is_file() and resolve_path("x" * 5000) == Path("x" * 5000)


WIDE = "a".encode("utf-16"), b"\0\0\xfe\xff", "a@@b".encode("utf-16-le"), "a@@b".encode("utf-16-be")


@pytest.mark.parametrize("content, words", [(b"a\nb\xff", "line 2: cannot be read as UTF-8"), *((text, "UTF-16") for text in WIDE)])
def test_text_is_utf_8(tmp_path, content, words):
    (tmp_path / "text").write_bytes(content)
    refused(words, read_text, tmp_path / "text", "a list")


def test_names_that_are_no_text_keep_their_bytes(tmp_path):
    write_text(tmp_path / "names", "caf\udce9 é")
    assert (tmp_path / "names").read_bytes() == b"caf\xe9 \xc3\xa9"
    assert read_text(tmp_path / "names", "names", errors="surrogateescape") == "caf\udce9 é"


@QUICK
@given(JSON_VALUES)
def test_json_comes_back_as_it_was_written(tmp_path_factory, value):
    file = tmp_path_factory.getbasetemp() / "value.json"
    write_json(file, value)
    assert read_json(file, "JSON") == value and recall_json(file) == (value if isinstance(value, dict) else None)


@QUICK
@given(st.lists(PIECES, max_size=12).map("".join))
def test_text_of_any_kind_is_json_or_told_in_one_line(text):
    for parse in (parse_json, parse_list):
        try:
            found = parse(text, "a.json")
        except UserError as error:
            assert str(error).startswith("a.json: ") and "\n" not in one_line(error)
        else:
            plain = json.loads(text) if not any(comma in text.replace(" ", "").replace("\n", "") for comma in (",]", ",}")) else None
            assert plain is None or plain == (found if parse is parse_json else [element for _, element in found])


def test_thousands_of_trailing_commas_are_one_warning(capsys):
    text = "[" + ", ".join('{"a": [1, "x,]"],}' for _ in range(30_000)) + ",]"
    assert len(parse_list(text, "l.json")) == 30_000
    assert capsys.readouterr().err.count("\n") == 1
    refused("expected", parse_list, "{}" + "\n" * 300_000, "l.json")
    refused("more than 60 brackets within one another", parse_list, "[" * 100_000, "l.json")


def test_a_line_obeys_no_terminal_and_ends():
    assert one_line("\n\u3000a\u202fb\u00a0.png\t\r\n c\x85\u2028 ") == "\u3000a\u202fb\u00a0.png c\\x85\\u2028", "names stay"
    line = one_line("a\x1b[31m\nb \x9b\u202e\udce9" + "x" * 5000)
    assert line.startswith("a\\x1b[31m b \\x9b\\u202e\\udce9") and len(line) < LONGEST + 100


def forbidden(*_, **__):
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_file_system_without_locks_and_modes_is_written_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(Path, "chmod", forbidden)
    with written_whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("1")
    with folder_written_whole(tmp_path / "b") as partial, only_writer(tmp_path):
        (partial / "c").touch()
    assert (tmp_path / "a.txt").read_text() == "1" and (tmp_path / "b" / "c").is_file()


def test_another_user_may_take_what_a_killed_one_held(tmp_path, monkeypatch):
    with locked(tmp_path / "lock", "it"):
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o666
    monkeypatch.setattr(Path, "unlink", forbidden)  # as in /tmp
    for _ in range(2):
        with locked(tmp_path / "lock", "it"):
            pass


def test_a_link_to_nothing_is_no_folder_to_write_to(places):
    for write in (check_writable, lambda folder: write_text(folder / "a", ""), lambda folder: locked(folder / "a", "it").__enter__()):
        refused(rf"^{places}/lost: cannot write here \(a symbolic link that leads nowhere\); choose", write, places / "lost")
        refused("set LC_ALL=C.UTF-8", write, places / "\ud800")  # which no locale can write, as a Chinese name in some


def test_leftovers_are_swept_and_what_is_being_written_stays(tmp_path):
    (tmp_path / ".killed.partial.mp4").touch()
    with written_whole(tmp_path / "a.onnx") as one, written_whole(tmp_path / "a.onnx") as other:
        remove_partial_files(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([one, other]) and visible_files(tmp_path, "*.onnx") == []
        one.write_text("1")
        other.write_text("2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"] and (tmp_path / "a.onnx").read_text() == "1"


def test_a_folder_is_one_process_s_and_whole(tmp_path):
    (tmp_path / ".made.abc.partial").mkdir()
    with folder_written_whole(tmp_path / "made") as folder:
        (folder / "x").write_text("x")
        (folder / "x").chmod(0o600)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".made.lock", folder.name])
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert stat.S_IMODE((tmp_path / "made" / "x").stat().st_mode) & 0o044
    with pytest.raises(UserError, match="exists already"), folder_written_whole(tmp_path / "made"):
        pass
    with another_process(LOCKING, tmp_path / ".second.lock") as other:
        words = rf"second: process {other.pid} on .* is writing it; wait for that to end"
        with pytest.raises(InUseError, match=words), folder_written_whole(tmp_path / "second"):
            pass
    second = folder_written_whole(tmp_path / "second")  # a killed process holds nothing
    with pytest.raises(UserError, match="has been made by somebody else meanwhile"), second as folder:
        (tmp_path / "second").mkdir()
    assert not folder.exists() and not list(tmp_path.glob(".*"))


def test_a_lock_names_its_owner_and_vanishes(tmp_path):
    with locked(tmp_path / "deep" / ".lock", "this"):
        assert json.loads((tmp_path / "deep" / ".lock").read_text())["process"] == os.getpid()
    assert not (tmp_path / "deep" / ".lock").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write here"), locked(tmp_path / "file" / ".lock", "this"):
        pass
    full = r"\.lock: could not be written .*; free some space or choose another folder"
    with no_file_larger_than(0), pytest.raises(UserError, match=full), locked(tmp_path / ".lock", "this"):
        pass
    assert not (tmp_path / ".lock").exists()


def test_copies_are_those_of_the_same_bytes(tmp_path):
    same, other = b"start" * 20000, b"start" * 15000 + b"other" + b"start" * 4999
    contents = {"a": same, "shorter": same[5:], "middle": other, "b": same}
    files = [tmp_path / name for name in (*contents, "empty", "none", "absent")]
    for file in files[:-1]:
        file.write_bytes(contents.get(file.name, b""))
    assert copies_among(files) == {tmp_path / "b": tmp_path / "a"}


def test_folders_of_files_called_the_same_are_their_own():
    assert all(len(f"{safe_name(letter * 99, 100)}_resize.png".encode()) <= 255 for letter in "a\u0e01\U00020000")
    assert len({own_name(Path(f"/vox/id{number:05d}/00001.mp4")) for number in range(20_000)}) == 20_000
