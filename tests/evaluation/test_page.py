"""The page holds all that it shows, and a prompt is text in it."""

import re

from evaluation.clips import other_photographs, scene, write_clip


def test_page_is_complete_and_needs_nothing(evaluate, tmp_path, portraits):
    """The report of two runs of two people with a prompt that is code."""
    frames = {
        "first": [scene(photo, portraits["actor"]) for photo in other_photographs(portraits["astronaut"])[:3]],
        "second": [scene(portraits["astronaut"]), scene(None), scene(portraits["actor"])],
    }
    for run, scenes in frames.items():
        write_clip(tmp_path / run / "pair.mp4", scenes)
        for number, name in enumerate(("astronaut", "actor"), 1):
            portraits[name].save(tmp_path / run / f"pair_{number}.png")
        (tmp_path / run / "pair.txt").write_text('a <script>document.title="taken"</script> & "two" people')
    assert evaluate("--videos", tmp_path / "first", tmp_path / "second")[0] == 0
    text = (tmp_path / "report" / "report.html").read_text()
    for tag in ("html", "body", "article", "section", "table", "tr", "td", "div", "svg", "p"):
        assert len(re.findall(rf"<{tag}[\s>]", text)) == text.count(f"</{tag}>"), tag
    sources = re.findall(r'\b(?:src|href|action)="([^"]*)"', text)
    assert len(sources) == 2 + 2 * 3, "references once, frames of both runs"
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"url\(|@import|<script", text)
    assert "&lt;script&gt;" in text and text.count("<article") == 2 and text.count('class="curve"') == 4
    assert len(re.findall("<div class=scroll tabindex=0 role=region aria-label=(Scores|Differences)>", text)) == 2
    assert "SFace similarity" in text and "ArcFace" not in text and "second minus first" in text
