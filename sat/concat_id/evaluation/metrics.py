"""The built-in metrics by name: what reports call them, which way is better, and what they mean."""

from typing import Literal, NamedTuple

from concat_id.video.face_parts import PARTS


class Metric(NamedTuple):
    """`label` may hold {face}, the recogniser's name, and {clip}, the CLIP model's; `places` are the decimals shown."""

    label: str
    better: Literal["more", "less", ""]
    meaning: str
    places: int = 3
    group: str = "Identity"

    def shown(self, value: float | None, signed: bool = False) -> str:
        """Write a value with the metric's decimals; a dash for none."""
        return "–" if value is None else f"{value:{'+' if signed else ''}.{self.places}f}"


CSV_HEAD = ("run", "name", "video", "prompt", "recognizer")  # columns of report.csv before the metrics
CSV_TAIL = ("similarity_low", "similarity_high", "problem")  # and behind them
FACE = "Cosine of face vectors, not below 0"
METRICS = {
    "similarity": Metric(
        "{face} similarity", "more",
        f"{FACE}; every sampled frame and every reference counts, one without its face as 0. The honest score."),
    "similarity_rescaled": Metric(
        "{face} similarity, rescaled", "more",
        "0: impostor similarity (other people), 1: genuine similarity (other photos of the same person). Needs --calibration."),
    "similarity_as_published": Metric(
        "{face} similarity as published", "more",
        "As ConsisID computes it for videos of one person, and OpenS2V-Eval its FaceSim-Arc: a frame's largest face; frames without one, "
        "also when framed in grey, are left out."),
    "detection_rate": Metric("face found", "more", "Share of sampled frames, over all references, with the face of that person."),
    "rank1_identification": Metric(
        "rank-1 identification", "more",
        "Share of people who resemble their own reference more than any other reference of these runs, one without a face counting as "
        "not. By chance: 1 / number of references. Two photos of one person count as two people.", 2),
    "copy_paste": Metric(
        "copy-paste index", "less",
        "How much the faces repeat the reference's pose, expression and light: 1 the same image. Real clips: 0.1 to 0.8."),
    "similarity_beyond_copying": Metric(
        "{face} similarity beyond copying", "more",
        "Mean of similarity x (1 - copy-paste index): a pasted face scores nearly 0."),
    "clip_distance": Metric(
        "CLIPDist ({clip})", "more",
        "1 - cosine of CLIP vectors of the aligned face crops of reference and frame: how far the face departs from the photo. "
        "Defined here; the paper names the score without its details."),
    "fgis": Metric(
        "FGIS ({clip})", "more",
        "Fine-grained identity similarity (ConsistentID): mean cosine of CLIP vectors of the parts that reference and face both show, over "
        "frames with the face. Strangers score high too: read it beside another run.", group="Parts of the face"),
    **{f"fgis_{part}": Metric(f"FGIS, {part}", "more", f"The same of the {part} alone.", group="Parts of the face") for part in PARTS},
    "match_rate": Metric("in its place", "more", "Share of places, left to right, whose face resembles their own reference most.",
                         group="Several people"),
    "swap_rate": Metric("swapped", "less", "Share of places whose face resembles another reference most.", group="Several people"),
    "stranger_rate": Metric("stranger", "less", "Share of places whose face resembles no reference.", group="Several people"),
    "missing_rate": Metric("missing", "less", "Share of places without a face.", group="Several people"),
    "merge_rate": Metric("merged", "less", "Share of the faces that resemble two references, by more than these resemble one another.",
                         group="Several people"),
    "order_accuracy": Metric("order", "more", "Share of pairs of recognised people that stand in the references' order.",
                             group="Several people"),
    "clip_text": Metric(
        "CLIP text ({clip})", "more",
        "Mean cosine of frames and prompt. Prompts beyond 77 tokens are read in chunks, whose vectors are averaged.", group="Text"),
    "viclip": Metric("ViCLIP", "more", "Cosine of video and prompt, of which 32 tokens are read at once.", group="Text"),
    "clip_consistency": Metric("CLIP consistency ({clip})", "more", "Mean cosine of successive sampled frames.", group="Motion"),
    "temporal_consistency": Metric(
        "temporal consistency", "more",
        "Share of a frame's contrast that the frame before it, moved along the optical flow, explains.", group="Motion"),
    "motion_amplitude": Metric("motion", "", "Mean optical flow, % of the image's diagonal per second.", 2, "Motion"),
    "flicker": Metric("flicker", "less", "Mean brightness of blocks that goes up and down from frame to frame, % of white.", 2, "Motion"),
}  # fmt: skip
SHARES = {"detection_rate", "rank1_identification", "match_rate", "swap_rate", "stranger_rate", "missing_rate", "merge_rate",
          "order_accuracy"}  # cases of all cases, so that many videos may have the very same one
OF_SUCCESSIVE = {"temporal_consistency", "flicker"}  # frames, which lie further apart at a lower rate
