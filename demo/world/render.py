"""Draw people's shots as frames, with the part of a face that each pixel shows."""

import numpy as np

from world import paint, parts
from world.head import HeadModel
from world.light import Scene, light_pixels
from world.meshes import Mesh, join, mesh
from world.paint import CLOTH, FRAME, HAIR, HAT, LENS, TEETH, TORSO, Paint
from world.palette import GAMMA
from world.people import Person
from world.raster import FAR, Shadow, rasterise, vertex_normals
from world.shots import Performance, Shot, ease

PIVOT = np.array([0.0, -0.30, -0.05], np.float32)  # the head turns about it
HAT_EDGE = 0.24  # below a hat, hair keeps its volume


class Actor:
    """One person dressed for a shot, as geometry that can be posed frame by frame."""

    def __init__(self, head: HeadModel, person: Person, performance: Performance):
        """Build what stays the same in all frames."""
        self.head, self.person, self.performance = head, person, performance
        self.paint = Paint(**{name: tuple(map(float, value)) if isinstance(value, np.ndarray) else value
                              for name, value in (person.paint | performance.paint).items()})  # fmt: skip
        self.fit = parts.fit_to(head, person.vertices)
        self.chin = (head.rest[:, 1] < -0.27) & (head.rest[:, 2] > 0.36) & (np.abs(head.rest[:, 0]) < 0.06)
        self.rest = person.vertices + self._hair_volume()
        pieces = [(parts.trunk(self.fit, performance.shoulders), TORSO)]
        neckwear = parts.collar(performance.paint["clothes"], self.fit)
        pieces += [(neckwear, CLOTH)] if neckwear else []
        worn = person.part if not performance.hat or person.part not in ("afro", "bun", "side bun") else "none"
        hair = parts.hair_part(worn, person.paint["phase"])
        pieces += [(self.fit.worn(self._under_hat(hair)), HAIR)] if hair else []
        if performance.hat:
            pieces.append((self.fit.worn(parts.hat(performance.hat, 0.3 * min(person.volume, 0.05))), HAT))
        if performance.glasses:
            frame, lenses = parts.glasses(self.fit, performance.glasses, performance.frame_thickness)
            pieces += [(frame, FRAME), *([(lenses, LENS)] if performance.dark_lenses else [])]
        pieces.append((parts.teeth(self.fit), TEETH))  # last: its lower row is moved
        self.pieces = join([piece for piece, _ in pieces])
        count = len(head.rest)
        self.triangles = np.concatenate([head.triangles, self.pieces.triangles + count]).astype(np.int32)
        self.materials = np.concatenate([head.materials, *(np.full(len(piece.triangles), material) for piece, material in pieces)]).astype(
            np.int32
        )
        self.canon = np.concatenate([head.rest, self.pieces.canon]).astype(np.float32)
        self.num_teeth = len(pieces[-1][0].vertices) // 2

    def _hair_volume(self) -> np.ndarray:
        """Offsets (V, 3) that raise the scalp by the hair's volume."""
        rest, person = self.head.rest, self.person
        cover = paint.scalp_cover(rest, self.head.masks[:, 1], self.paint)
        curls = 1 + (0.45 if self.paint.curl > 0.5 else 0.12) * np.sin(38 * rest[:, 0] + self.paint.phase) * np.sin(
            33 * rest[:, 1]
        ) * np.cos(29 * rest[:, 2])
        crown = np.clip((rest[:, 1] - 0.25) / 0.2, 0, 1) * np.clip((rest[:, 2] + 0.1) / 0.2, 0, 1)
        volume = (person.volume * curls + person.quiff * crown) * cover
        if self.performance.hat:
            volume *= np.clip((HAT_EDGE - rest[:, 1] + 0.3 * np.minimum(rest[:, 2], 0.1)) / 0.06, 0, 1)
        return vertex_normals(person.vertices, self.head.triangles) * volume[:, None].astype(np.float32)

    def _under_hat(self, hair: Mesh) -> Mesh:
        """Draw hair in where a hat sits on it."""
        if not self.performance.hat:
            return hair
        points = hair.vertices.copy()
        inside = np.clip((points[:, 1] - 0.12) / 0.1, 0, 1)[:, None]
        points[:, [0, 2]] *= 1 - 0.22 * inside
        return mesh(points, hair.triangles, hair.canon)

    def posed(self, frame: int) -> np.ndarray:
        """Vertices of all surfaces in one frame, in head coordinates of this person."""
        performance = self.performance
        face = self.head.moved(self.rest, performance.actions[frame])
        body = self.pieces.vertices.copy()
        body[-self.num_teeth :] += (face - self.rest)[self.chin].mean(axis=0) * 0.85
        vertices = np.concatenate([face, body])
        # The neck twists: nothing below it follows the head.
        height = self.canon[:, 1] + 0.3 * self.canon[:, 2]
        share = ease(height, -0.46, 0.19)[:, None].astype(np.float32)
        share[: len(face)][self.head.materials_of_vertices != 0] = 1
        share[-2 * self.num_teeth :] = 1
        turned = (vertices - PIVOT) @ rotation(performance.yaw[frame], performance.pitch[frame], performance.roll[frame]).T + PIVOT
        vertices = vertices + share * (turned - vertices)
        vertices[:, :2] += performance.sway[frame]
        return np.ascontiguousarray(vertices, np.float32)


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Rotation (3, 3): yaw turns the face to the image's right, pitch bends it down, roll tilts it to the left."""
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return (about_y @ about_x @ about_z).astype(np.float32)


class ShotRenderer:
    """Draws the frames of one shot at a size (height, width)."""

    def __init__(self, head: HeadModel, people: list[Person], shot: Shot, size: tuple[int, int], samples: int = 2):
        """Dress the people and paint the background; `samples` x `samples` looks make one pixel."""
        self.shot, self.size, self.samples, self.head = shot, size, samples, head
        self.actors = [Actor(head, person, performance) for person, performance in zip(people, shot.performances, strict=True)]
        self.height, self.width = size[0] * samples, size[1] * samples
        light = shot.lamp.key + 0.5 * (shot.lamp.sky + shot.lamp.ground)
        self.background = shot.background.draw(self.height, self.width, shot.lamp.direction) * (light / 1.18).clip(0, 1.15)

    def frame(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw one frame: uint8 image (H, W, 3) and classes (H, W) as in concat_id.face.parsing."""
        image = self.background.copy()
        classes = np.zeros((self.height, self.width), np.uint8)
        nearest = np.full((self.height, self.width), np.float32(FAR))
        for actor in self.actors:
            vertices = actor.posed(index)
            normals = vertex_normals(vertices, actor.triangles)
            seen = np.full((self.height, self.width), -1, np.int32)
            where = np.empty((self.height, self.width, 2), np.float32)
            points, depths = self._project(vertices, actor.performance)
            rasterise(points, depths, actor.triangles, nearest, seen, where)
            shadow = Shadow(vertices, actor.triangles, self.shot.lamp.direction)
            scene = Scene(actor.triangles, actor.materials, vertices, normals, actor.canon, self.head.masks)
            light_pixels(image, classes, seen, where, scene, actor.paint, self.shot.lamp, shadow.view, shadow.scale, shadow.depths)
        n = self.samples
        averaged = sum(image[j::n, i::n] for j in range(n) for i in range(n)) / n**2
        averaged = (np.clip(averaged, 0, 1) ** (1 / GAMMA) * 255 + 0.5).astype(np.uint8)
        return averaged, classes[n // 2 :: n, n // 2 :: n]

    def keypoints(self, index: int, place: int = 0) -> np.ndarray:
        """Where a person's eyes, nose and mouth's corners are in a frame: pixels (5, 2), their centres at whole numbers."""
        points, _ = self._project(self.actors[place].posed(index), self.actors[place].performance)
        return np.stack([points[part].mean(axis=0) for part in self.head.landmarks]) / self.samples - 0.5

    def _project(self, vertices: np.ndarray, performance: Performance) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (V, 2) of the oversampled image and depths (V,), as a camera at `distance` sees them."""
        zoom = performance.scale * self.height * self.shot.distance / (self.shot.distance - vertices[:, 2])
        x = (0.5 + performance.place[0]) * self.width + vertices[:, 0] * zoom
        y = performance.place[1] * self.height - vertices[:, 1] * zoom
        return np.stack([x, y], axis=1).astype(np.float32), np.ascontiguousarray(vertices[:, 2] * performance.scale)
