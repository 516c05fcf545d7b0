"""Surfaces: subdivision, grids and joining."""

import numpy as np

CUBE = np.array([[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]])
CORNERS = np.array([[x, y, z] for z in (-1, 1) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))], float)


def test_a_finer_cube_has_the_counts_and_places_of_the_rule():
    from world.meshes import subdivision

    matrix, quads = subdivision(CUBE, len(CORNERS))
    assert matrix.shape == (8 + 12 + 6, 8) and quads.shape == (24, 4)
    np.testing.assert_allclose(np.asarray(matrix.sum(axis=1)).ravel(), 1, atol=1e-6)
    finer = matrix @ CORNERS
    # of a corner: (mean of faces + 2 mean of edges + (3 - 3) itself) / 3; of an edge: mean of its ends and its faces; of a face: its middle
    np.testing.assert_allclose(np.abs(finer[:8]), (1 / 3 + 2 * 2 / 3) / 3, atol=1e-6)
    np.testing.assert_allclose(np.sort(np.abs(finer[8:20]), axis=1)[:, 1:], 0.75, atol=1e-6)
    np.testing.assert_allclose(np.abs(finer[20:]).sum(axis=1), 1, atol=1e-6)
