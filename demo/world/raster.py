"""Which triangle is seen where: a z-buffer, and a second one from the light for soft shadows."""

import math

import numpy as np
from numba import njit

FAR = -1e9


@njit(cache=True, fastmath=True)
def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit normals (V, 3), each the mean of its triangles' weighted by their areas."""
    normals = np.zeros_like(vertices)
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ux, uy, uz = vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1], vertices[b, 2] - vertices[a, 2]
        wx, wy, wz = vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1], vertices[c, 2] - vertices[a, 2]
        x, y, z = uy * wz - uz * wy, uz * wx - ux * wz, ux * wy - uy * wx
        for k in (a, b, c):
            normals[k, 0] += x
            normals[k, 1] += y
            normals[k, 2] += z
    for k in range(normals.shape[0]):
        length = math.sqrt(normals[k, 0] ** 2 + normals[k, 1] ** 2 + normals[k, 2] ** 2) + 1e-12
        normals[k, 0] /= length
        normals[k, 1] /= length
        normals[k, 2] /= length
    return normals


@njit(cache=True, fastmath=True)
def rasterise(points: np.ndarray, depths: np.ndarray, triangles: np.ndarray, nearest: np.ndarray, seen: np.ndarray, where: np.ndarray):
    """Draw triangles over points (V, 2) in pixels into `nearest` (H, W), larger depths being nearer.

    `seen` (H, W) takes the triangle's number and `where` (H, W, 2) its barycentric coordinates.
    """
    height, width = nearest.shape
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        x0, y0, x1, y1, x2, y2 = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        ex, ey, fx, fy = x1 - x0, y1 - y0, x2 - x0, y2 - y0
        area = ex * fy - fx * ey
        if area == 0.0:
            continue
        left, right = max(math.ceil(min(x0, x1, x2)), 0), min(math.floor(max(x0, x1, x2)), width - 1)
        top, bottom = max(math.ceil(min(y0, y1, y2)), 0), min(math.floor(max(y0, y1, y2)), height - 1)
        for j in range(top, bottom + 1):
            for i in range(left, right + 1):
                u = ((i - x0) * fy - fx * (j - y0)) / area
                v = (ex * (j - y0) - (i - x0) * ey) / area
                if u < 0 or v < 0 or u + v > 1:
                    continue
                depth = (1 - u - v) * depths[a] + u * depths[b] + v * depths[c]
                if depth > nearest[j, i]:
                    nearest[j, i] = depth
                    seen[j, i] = t
                    where[j, i, 0] = u
                    where[j, i, 1] = v


def view_along(direction: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) whose third row is `direction`, so that it turns that way into the depth."""
    ahead = direction / np.linalg.norm(direction)
    right = np.cross([0.0, 1.0, 0.0] if abs(ahead[1]) < 0.95 else [1.0, 0.0, 0.0], ahead)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(ahead, right), ahead]).astype(np.float32)


class Shadow:
    """What a light sees: `view` (3, 3), `scale` and `centre` bring a point to pixels of `depths`."""

    SIZE = 160
    REACH = 1.0  # units on either side of the head's middle

    def __init__(self, vertices: np.ndarray, triangles: np.ndarray, direction: np.ndarray):
        """Draw the depths of a scene from the light's side."""
        self.view = view_along(direction)
        self.scale = np.float32(self.SIZE / (2 * self.REACH))
        turned = vertices @ self.view.T
        points = np.ascontiguousarray(turned[:, :2] * [1, -1] * self.scale + self.SIZE / 2, np.float32)
        self.depths = np.full((self.SIZE, self.SIZE), np.float32(FAR))
        seen, where = np.empty((self.SIZE, self.SIZE), np.int32), np.empty((self.SIZE, self.SIZE, 2), np.float32)
        rasterise(points, np.ascontiguousarray(turned[:, 2]), triangles, self.depths, seen, where)


def ambient_occlusion(vertices: np.ndarray, triangles: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Share of the sky that each vertex sees (V,), weighted by the cosine: depth maps from directions all around."""
    k = np.arange(96) + 0.5
    y, phi = 1 - 2 * k / len(k), k * np.pi * (3 - np.sqrt(5))  # a spiral of even density
    directions = np.stack([np.sqrt(1 - y**2) * np.cos(phi), y, np.sqrt(1 - y**2) * np.sin(phi)], axis=1)
    seen, total = np.zeros(len(vertices)), np.zeros(len(vertices))
    for direction in directions:
        shadow = Shadow(vertices, triangles, direction)
        turned = (vertices + 0.012 * normals) @ shadow.view.T
        pixels = np.clip(np.rint(turned[:, :2] * [1, -1] * shadow.scale + Shadow.SIZE / 2), 0, Shadow.SIZE - 1).astype(int)
        weight = np.maximum(normals @ direction, 0)
        seen += weight * (turned[:, 2] + 0.012 >= shadow.depths[pixels[:, 1], pixels[:, 0]])
        total += weight
    return (seen / np.maximum(total, 1e-6)).astype(np.float32)
