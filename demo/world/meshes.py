"""Surfaces made of triangles, and finer ones made of quads."""

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, vstack


class Mesh(NamedTuple):
    """Vertices (V, 3), triangles (T, 3), and coordinates (V, 3) that stay with the surface while it moves, for painting."""

    vertices: np.ndarray
    triangles: np.ndarray
    canon: np.ndarray


def mesh(vertices: np.ndarray, triangles: np.ndarray, canon: np.ndarray | None = None) -> Mesh:
    """Make a mesh; without coordinates of its own it is painted where it is."""
    vertices = np.ascontiguousarray(vertices, np.float32)
    canon = vertices if canon is None else np.ascontiguousarray(canon, np.float32)
    return Mesh(vertices, np.ascontiguousarray(triangles, np.int32), canon)


def grid_triangles(rows: int, columns: int, closed: bool) -> np.ndarray:
    """Triangles (T, 3) of a grid of vertices in row-major order; `closed` joins the last column to the first."""
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(columns if closed else columns - 1), indexing="ij")
    a, b = i * columns + j, i * columns + (j + 1) % columns
    quads = np.stack([a, b, b + columns, a + columns], axis=-1).reshape(-1, 4)
    return quads_to_triangles(quads)


def quads_to_triangles(quads: np.ndarray) -> np.ndarray:
    """Split quads (Q, 4) into triangles (2 Q, 3): the first halves of all, then the second halves."""
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def ellipsoid(centre: tuple, radii: tuple, rings: int = 28, lowest: float = np.pi) -> Mesh:
    """An ellipsoid, or its upper part down to the polar angle `lowest`."""
    theta, phi = np.meshgrid(np.linspace(0, lowest, rings), np.linspace(0, 2 * np.pi, 2 * rings, endpoint=False), indexing="ij")
    points = np.stack([-np.sin(theta) * np.sin(phi), np.cos(theta), np.sin(theta) * np.cos(phi)], axis=-1)
    return mesh(points.reshape(-1, 3) * np.array(radii) + np.array(centre), grid_triangles(rings, 2 * rings, closed=True))


def tube(points: np.ndarray, radius: float, closed: bool, sides: int = 8) -> Mesh:
    """A tube of constant radius along points (N, 3)."""
    ahead = np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0)
    if not closed:
        ahead[0], ahead[-1] = points[1] - points[0], points[-1] - points[-2]
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    across = np.cross(ahead, np.where(np.abs(ahead[:, 1:2]) > 0.9, [1.0, 0, 0], [0, 1.0, 0]))
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    up = np.cross(across, ahead)
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)[None, :, None]
    around = points[:, None] + radius * (np.cos(angle) * across[:, None] + np.sin(angle) * up[:, None])
    rows = np.concatenate([around, around[:1]]) if closed else around
    return mesh(rows.reshape(-1, 3), grid_triangles(len(rows), sides, closed=True))


def join(parts: list[Mesh]) -> Mesh:
    """Put meshes together."""
    starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
    triangles = np.concatenate([part.triangles + start for part, start in zip(parts, starts, strict=False)])
    return mesh(np.concatenate([part.vertices for part in parts]), triangles, np.concatenate([part.canon for part in parts]))


def subdivision(quads: np.ndarray, num_vertices: int) -> tuple[csr_matrix, np.ndarray]:
    """One step of Catmull and Clark's rule: the matrix (V', V) that gives the finer vertices, and the finer quads (4 Q, 4).

    The finer quads of quad q are 4 q .. 4 q + 3. Vertices on an open border keep to the border. Source: Catmull, Clark, 1978.
    """
    num_quads = len(quads)
    sides = np.stack([quads, np.roll(quads, -1, axis=1)], axis=-1)
    edges, edge_of = np.unique(np.sort(sides.reshape(-1, 2), axis=1), axis=0, return_inverse=True)
    edge_of = edge_of.reshape(num_quads, 4)
    uses = np.bincount(edge_of.ravel(), minlength=len(edges))
    face_rows = links(np.repeat(np.arange(num_quads), 4), quads.ravel(), 0.25, (num_quads, num_vertices))
    middle = links(np.repeat(np.arange(len(edges)), 2), edges.ravel(), 0.5, (len(edges), num_vertices))
    faces_of_edge = links(edge_of.ravel(), np.repeat(np.arange(num_quads), 4), 1.0, (len(edges), num_quads))
    inner_edge = (uses == 2).astype(float)[:, None]
    edge_rows = middle.multiply(1 - inner_edge / 2) + (faces_of_edge @ face_rows).multiply(inner_edge / 4)

    border = np.zeros(num_vertices, bool)
    border[edges[uses == 1].ravel()] = True
    faces_at = links(quads.ravel(), np.repeat(np.arange(num_quads), 4), 1.0, (num_vertices, num_quads))
    edges_at = links(edges.ravel(), np.repeat(np.arange(len(edges)), 2), 1.0, (num_vertices, len(edges)))
    border_edges_at = edges_at.multiply((uses == 1).astype(float)[None, :])
    valence = np.maximum(np.asarray(edges_at.sum(axis=1)), 1)
    identity = links(np.arange(num_vertices), np.arange(num_vertices), 1.0, (num_vertices, num_vertices))
    inner = ((faces_at @ face_rows).multiply(1 / valence**2) + (edges_at @ middle).multiply(2 / valence**2)
             + identity.multiply((valence - 3) / valence))  # fmt: skip
    outer = identity.multiply(0.5) + (border_edges_at @ middle).multiply(0.25)
    vertex_rows = inner.multiply(~border[:, None]) + outer.multiply(border[:, None])

    first_face, first_edge = num_vertices + len(edges), num_vertices
    centre = np.repeat(first_face + np.arange(num_quads), 4)
    before = first_edge + np.roll(edge_of, 1, axis=1).ravel()
    finer = np.stack([quads.ravel(), first_edge + edge_of.ravel(), centre, before], axis=-1)
    return csr_matrix(vstack([vertex_rows, edge_rows, face_rows])).astype(np.float32), finer


def links(rows: np.ndarray, columns: np.ndarray, value: float, shape: tuple[int, int]) -> csr_matrix:
    """A matrix with `value` at (row, column), as often as each comes."""
    return coo_matrix((np.full(len(rows), value), (rows, columns)), shape=shape).tocsr()
