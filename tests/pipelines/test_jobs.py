"""Prompt files, output folders and what counts as finished."""

import json

import pytest

from concat_id.errors import UserError
from concat_id.pipelines.jobs import INFO, make_job, read_prompt_file


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"a picture")
    return path


def test_lines_become_jobs_in_order(tmp_path, photo):
    file = tmp_path / "prompts.txt"
    file.write_text(f"A man walks.@@{photo}\n\n Two people  talk @@ {photo} @@{photo}\n")
    jobs, problems = read_prompt_file(file, tmp_path / "out", max_refs=3)
    assert problems == []
    assert [(job.prompt, len(job.images), job.folder.name) for job in jobs] == [
        ("A man walks.", 1, "0000_A_man_walks"),
        ("Two people  talk", 2, "0001_Two_people_talk"),
    ]
    assert jobs[1].source == f"{file}:3"


def test_bad_lines_are_reported_and_do_not_stop_the_others(tmp_path, photo):
    file = tmp_path / "prompts.txt"
    file.write_text(f"no separator\n@@{photo}\nok@@{photo}\nmissing@@{tmp_path}/none.png\nfour@@{'@@'.join([str(photo)] * 4)}\nempty@@\n")
    jobs, problems = read_prompt_file(file, tmp_path / "out", max_refs=3)
    assert [job.prompt for job in jobs] == ["ok"]
    assert [job.index for job in jobs] == [2], "the index is that of the line, whatever happens to the others"
    for number, words in {1: "no '@@'", 2: "prompt is empty", 4: "does not exist", 5: "at most 3", 6: "no reference image"}.items():
        assert any(problem.startswith(f"{file}:{number}: ") and words in problem for problem in problems), (words, problems)


@pytest.mark.parametrize("content, words", [(None, "no such prompt file"), (b"\n  \n", "is empty"), (b"\xff\xfe\xff", "UTF-8")])
def test_unusable_prompt_files(tmp_path, content, words):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_prompt_file(file, tmp_path, 3)


@pytest.mark.parametrize("prompt", ["../../x", "/etc/passwd", "..", "a" * 5000, "日本語", "a/b\\c", "con\n..\n"])
def test_a_prompt_cannot_choose_a_path_outside(tmp_path, photo, prompt):
    folder = make_job(7, prompt, [str(photo)], tmp_path / "out", "--prompt", 3).folder
    assert folder.resolve().parent == (tmp_path / "out").resolve()
    assert folder.name.startswith("0007_") and len(folder.name) <= 65


def test_finished_means_same_content_and_all_files_there(tmp_path, photo):
    job = make_job(0, "p", [str(photo)], tmp_path, "--prompt", 3)
    fingerprint = job.fingerprint({"seed": 1})
    assert not job.is_finished(fingerprint)
    job.folder.mkdir()
    (job.folder / "video.mp4").write_bytes(b"v")
    (job.folder / INFO).write_text(json.dumps({"fingerprint": fingerprint, "files": ["video.mp4"]}))
    assert job.is_finished(fingerprint)
    assert not job.is_finished(job.fingerprint({"seed": 2}))
    photo.write_bytes(b"another picture")
    assert not job.is_finished(job.fingerprint({"seed": 1})), "a changed photo means other content"
    (job.folder / "video.mp4").unlink()
    assert not job.is_finished(fingerprint)
