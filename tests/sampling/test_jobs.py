"""Prompt files, output folders and what counts as finished."""

import json

import pytest
from in_process import another_process, refused

from concat_id.files.locks import InUseError
from concat_id.sampling import jobs
from concat_id.sampling.jobs import INFO, claimed, finished_folders, make_job, read_prompt_file


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"an image")
    return path


def test_lines_become_jobs_in_order(tmp_path, photo):
    file = tmp_path / "prompts.txt"
    file.write_text(f"A man walks.@@{photo}\n\n Two people  talk @@ {photo} @@{photo}\n")
    jobs, problems = read_prompt_file(file, max_refs=3)
    assert problems == []
    assert [(job.prompt, len(job.people), job.name) for job in jobs] == [
        ("A man walks.", 1, "0000_A_man_walks"),
        ("Two people  talk", 2, "0001_Two_people_talk"),
    ]
    assert jobs[1].source == f"{file}:3"


def test_a_person_may_have_several_photos(tmp_path, photo):
    other, plus = tmp_path / "other.png", tmp_path / "a+b.png"
    for file in (other, plus):
        file.write_bytes(file.name.encode())
    many = "+".join([other.name] * 41)
    people = f"{photo}+{other} @@{plus}", photo, f"{photo}+gone.png", f"{photo}+", f"{plus}+{many}"
    (tmp_path / "prompts.txt").write_text("\n".join(f"A man.@@{photos}" for photos in people))
    (job, alone, crowd), (gone, nameless) = read_prompt_file(tmp_path / "prompts.txt", max_refs=3)
    assert job.people == ((photo, other), (plus,)) and ":3: reference image 'gone.png': found no such file" in gone
    assert crowd.people == ((plus, *[other] * 41),) and "remove the last '@@' or '+'" in nameless
    assert job.fingerprint({}) != job.fingerprint({"photos": "all"})
    assert alone.fingerprint({}) == alone.fingerprint({"photos": "all"})  # which changes nothing for one photo


@pytest.mark.parametrize("content, words", [
    (b"\n  \n", "is empty"), (b"\xff\xfe\xff", "UTF-8"), (b"\xff\xd8\0\n\xff\n", "found binary data, expected a prompt file"),
])
def test_unusable_prompt_files(tmp_path, content, words):
    (tmp_path / "prompts.txt").write_bytes(content)
    refused(words, read_prompt_file, tmp_path / "prompts.txt", 3)


def test_a_comment_and_another_encoding_are_told(tmp_path):
    (tmp_path / "prompts.txt").write_bytes("# a comment\nUn caf\u00e9@@a.png".encode("latin-1"))
    _, (comment, encoding) = read_prompt_file(tmp_path / "prompts.txt", 3)
    assert "'# a comment'; remove it" in comment and "'Un caf\u00e9@@a.png' has bytes that are no UTF-8" in encoding


@pytest.mark.parametrize("prompt", ["../../x", "/etc/passwd", "..", "a" * 5000, "日本語", "a/b\\c", "con\n..\n"])
def test_a_prompt_cannot_choose_a_path_outside(tmp_path, photo, prompt):
    name = make_job(7, prompt, [str(photo)], "--prompt", 3).name
    assert (tmp_path / "out" / name).resolve().parent == (tmp_path / "out").resolve()
    assert name.startswith("0007_") and len(name) <= 65


@pytest.mark.parametrize("prompt, name", [
    ("一个男人在雨中笑", "一个男人在雨中笑"), ("رجل يضحك", "رجل_يضحك"), ("हिन्दी में", "हिन्दी_में"), ("cafe\u0301", "caf\u00e9"),
    ("🙂?", "untitled"),
])  # fmt: skip
def test_names_keep_the_letters_of_any_script(photo, prompt, name):
    assert make_job(0, prompt, [str(photo)], "--prompt", 3).name == f"0000_{name}"
    assert len(make_job(0, prompt * 100, [str(photo)], "--prompt", 3).name.encode()) < 200


def test_a_prompt_is_the_same_in_every_form_of_unicode(photo):
    one, other = (make_job(0, prompt, [str(photo)], "--prompt", 3) for prompt in ("caf\u00e9 ", "\ufeffcafe\u0301 "))
    assert one == other and one.prompt == "caf\u00e9 "


def test_images_are_found_beside_the_prompt_file_first(tmp_path, photo, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.png").write_bytes(b"another")
    (tmp_path / "here" / "b.png").write_bytes(b"only here")
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "prompts.txt").write_text("one@@a.png@@b.png\n")
    ((job,), problems) = read_prompt_file(tmp_path / "prompts.txt", 3)
    assert problems == [] and [path.resolve() for (path,) in job.people] == [photo, tmp_path / "here" / "b.png"]


def finish(folder, fingerprint, files=("video.mp4",)):
    for name in files:
        (folder / name).write_bytes(b"v")
    (folder / INFO).write_text(json.dumps({"fingerprint": fingerprint, "files": list(files)}))


def test_finished_means_same_content_and_all_files_there(tmp_path, photo, monkeypatch):
    job = make_job(0, "p", [str(photo)], "--prompt", 3)
    fingerprint = job.fingerprint({"seed": 1})
    with claimed(job, fingerprint, tmp_path) as folder:
        assert folder == tmp_path / "0000_p" and finished_folders(tmp_path) == {}
        finish(folder, fingerprint)
    assert finished_folders(tmp_path) == {fingerprint: folder}
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "recall_json", None)  # each info.json is read once
        assert finished_folders(tmp_path) == {fingerprint: folder}
        (folder / "video.mp4").rename(tmp_path / "moved.mp4")
        assert finished_folders(tmp_path) == {}
    finish(folder, "e" * 63)
    assert finished_folders(tmp_path) == {"e" * 63: folder}
    finish(folder, fingerprint)
    assert job.fingerprint({"seed": 2}) != fingerprint
    photo.write_bytes(b"another image")
    assert job.fingerprint({"seed": 1}) != fingerprint, "a changed photo means other content"
    (folder / "video.mp4").unlink()
    assert finished_folders(tmp_path) == {}
    for own, name in ((fingerprint, "0000_p"), ("e" * 64, "0000_p_2")):
        with claimed(job, own, tmp_path) as folder:
            assert folder.name == name, "what is left of a result is its own job's"


DAMAGED = ["", "[]", "[" * 5000, '{"fingerprint": 3, "files": []}', '{"fingerprint": "x"}', '{"files": {"a": 1}}', "\udcff"]


@pytest.mark.parametrize("content", DAMAGED)
def test_what_stands_by_a_damaged_info_is_neither_finished_nor_overwritten(tmp_path, photo, content):
    (tmp_path / "0000_p").mkdir()
    (tmp_path / "0000_p" / INFO).write_bytes(content.encode(errors="surrogateescape"))
    assert finished_folders(tmp_path) == {}
    with claimed(make_job(0, "p", [str(photo)], "--prompt", 3), "f" * 64, tmp_path) as folder:
        assert folder == tmp_path / "0000_p_2"


def test_results_of_others_stay_and_moved_lines_are_known_again(tmp_path, photo):
    """A finished folder is never another job's; one made again stays where it is; a failed job leaves no empty folder."""
    job, moved = (make_job(index, "p", [str(photo)], "--prompt", 3) for index in (0, 1))
    (tmp_path / "0001_p_2").write_text("a file of the user's")
    for fingerprint, expected in (("a" * 64, "0001_p"), ("b" * 64, "0001_p_3"), ("c" * 64, "0001_p_4")):
        with claimed(moved, fingerprint, tmp_path) as folder:
            assert folder.name == expected
            finish(folder, fingerprint)
    assert finished_folders(tmp_path)["b" * 64].name == "0001_p_3"
    with claimed(job, "b" * 64, tmp_path, again=tmp_path / "0001_p_3") as folder:
        assert folder.name == "0001_p_3"
    with claimed(moved, "a" * 64, tmp_path) as folder:
        assert folder is None, "finished meanwhile"
    with claimed(job, "a" * 64, tmp_path) as folder:
        assert folder is None, "finished meanwhile as another line"
    with pytest.raises(RuntimeError), claimed(job, "d" * 64, tmp_path) as folder:
        raise RuntimeError
    assert not folder.exists() and not list(tmp_path.glob(".*"))


def test_one_process_makes_a_job_and_another_takes_the_next_folder(tmp_path, photo):
    job = make_job(0, "p", [str(photo)], "--prompt", 3)
    code = "import sys; from pathlib import Path; from concat_id.sampling.jobs import claimed, make_job\n"
    code += "with claimed(make_job(0, 'p', [sys.argv[1]], '--prompt', 3), 'a' * 64, Path(sys.argv[2])) as folder:\n"
    code += "    print(folder.name, flush=True); sys.stdin.read()"
    with another_process(code, photo, tmp_path) as other:
        assert other.line == "0000_p\n"
        with pytest.raises(InUseError, match=rf"--prompt: process {other.pid} on .* is writing it"), claimed(job, "a" * 64, tmp_path):
            pass
        with claimed(job, "b" * 64, tmp_path) as folder:
            assert folder.name == "0000_p_2"
    with claimed(job, "a" * 64, tmp_path) as folder:
        assert folder.name == "0000_p", "a killed process holds nothing"
