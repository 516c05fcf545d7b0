"""What became of a video: its folder and its record, made by this run or by an earlier one."""

import json
import zlib
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

from concat_id.curation.reference_crops import count_verdicts
from concat_id.curation.source_videos import RECORD, SourceVideo
from concat_id.data.manifest import read_clips
from concat_id.errors import UserError, one_line
from concat_id.files.json_files import NUMBER, OBJECT, TEXT, list_of, recall_json, take
from concat_id.files.paths import kind_of, visible_files

WITHDRAWN = "all crops of a person have been taken out by hand"


class PreparedVideo(NamedTuple):
    """What became of a video: its folder, its record, packed as there may be a million, and whether an earlier run had made it."""

    folder: Path
    packed: bytes
    recalled: bool

    @classmethod
    def of(cls, folder: Path, record: dict[str, Any], recalled: bool) -> "PreparedVideo":
        """Pack a record."""
        return cls(folder, zlib.compress(json.dumps(record).encode(), 1), recalled)

    @property
    def record(self) -> dict[str, Any]:
        """Unpack the record, anew each time."""
        return json.loads(zlib.decompress(self.packed))


def recall(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the record of what was made for `fingerprint`, None unless it is all there; crops may have been taken out by hand.

    A clip with somebody whose crops have all been taken out is discarded.
    """
    record = recall_json(folder / RECORD)
    try:
        if take(record, "fingerprint", TEXT, RECORD) != fingerprint:
            return None
        take(record, "source", TEXT, RECORD)
        discarded, clips = (take(record, key, list_of(OBJECT), RECORD) for key in ("discarded", "clips"))
        gone = [any(not visible_files(folder / take(person, "folder", TEXT, RECORD), "*.png")
                    for person in take(clip, "people", list_of(OBJECT), RECORD)) for clip in clips]  # fmt: skip
        discarded += [{"start": take(clip, "start", NUMBER, RECORD), "end": take(clip, "end", NUMBER, RECORD), "reason": WITHDRAWN}
                      for clip in compress(clips, gone)]  # fmt: skip
        record["clips"] = [clip for clip, is_gone in zip(clips, gone, strict=True) if not is_gone]
        sizes = take(record, "files", OBJECT, RECORD, optional=True) or {}  # older ones have none
        clips = read_clips(record["clips"], folder, RECORD)
        count_verdicts([(folder, record)])
    except UserError:
        return None
    masks = [person.mask(number) for clip in clips for person in clip.people for number in range(len(person.names))]
    needed = [*(clip.video for clip in clips), *masks]
    changed = (name for name, size in sizes.items() if kind_of(folder / name) == "a file" and (folder / name).stat().st_size != size)
    return record if all(kind_of(file) == "a file" for file in needed) and not any(changed) else None


def tell_of(source: SourceVideo, prepared: PreparedVideo) -> str | None:
    """Say what became of a video, unless an earlier run has said it all, or a photograph gave nothing to tell."""
    record = prepared.record
    clips, discarded = record["clips"], record["discarded"]
    notes = [f"    {clip['note']}" for clip in clips if "note" in clip]
    notes += [f"    {entry['start']:.1f}-{entry['end']:.1f} s discarded: {entry['reason']}" for entry in discarded]
    is_new = not prepared.recalled or any(entry["reason"] == WITHDRAWN for entry in discarded)
    if not is_new or source.is_image and not notes:
        return None
    return "\n".join([one_line(f"{source.path}: {len(clips)} clips"), *notes])
