"""What a slot of the page says of its photos."""

import sys
from pathlib import Path

from conftest import ROOT

from concat_id.config.loading import load_config
from concat_id.config.presets import files_of
from concat_id.studio.photos import PhotoReader, marked, sentence, side_by_side


def test_a_stranger_among_the_photos_of_a_slot_is_told_and_not_taken(tmp_path, photographs):
    paths = [tmp_path / "<i>.png", tmp_path / "b.png", tmp_path / "c.png"]
    for path, name in zip(paths, ("actor", "astronaut", "astronaut"), strict=True):
        path.write_bytes(photographs[name].read_bytes())
    reader, config = PhotoReader(), load_config(files_of("mini"))
    shown, told = reader.look([str(path) for path in paths], config)
    (line,) = [line for line in told.split("<br>") if 'class="word stranger"' in line]
    assert "&lt;i&gt;.png: another person than in " in line and "<i>" not in told
    taken = reader.read(str(paths[1]), config)
    assert shown.tobytes() == side_by_side([taken.crop, taken.image]).tobytes()
    assert "stranger" not in reader.look([str(path) for path in paths[1:]], config)[1]
    names = "bad  file.png", "\u202egnp.png"
    for name in names:
        (tmp_path / name).write_text("no image")
    assert sentence(f"run `{sys.executable} -m pip`") == f"run `{Path(sys.executable).name} -m pip`"
    shown, told = reader.look([str(ROOT / "examples" / "people" / "ben.png"), *(str(tmp_path / name) for name in names)], config)
    good, *others = told.split("<br>")
    assert shown and good == marked("good", "ben.png")
    assert all('class="word unreadable"' in line and ", or remove it" in line for line in others)
    assert str(tmp_path) not in told and "> bad file.png: " in others[0] and "> \\u202egnp.png: " in others[1]
