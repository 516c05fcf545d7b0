"""The z-buffer, normals and shadows."""

import numpy as np


def draw(points, depths, triangles, size=8):
    from world.raster import FAR, rasterise

    nearest = np.full((size, size), np.float32(FAR))
    seen, where = np.full((size, size), -1, np.int32), np.zeros((size, size, 2), np.float32)
    rasterise(np.array(points, np.float32), np.array(depths, np.float32), np.array(triangles, np.int32), nearest, seen, where)
    return nearest, seen, where


def test_the_nearer_triangle_is_seen_whatever_the_order():
    points = [(0, 0), (7, 0), (0, 7), (0, 0), (7, 0), (0, 7)]
    for triangles in ([[0, 1, 2], [3, 4, 5]], [[3, 4, 5], [0, 1, 2]]):
        nearest, seen, _ = draw(points, [1, 1, 1, 2, 2, 2], triangles)
        inside = np.add.outer(np.arange(8), np.arange(8)) <= 7
        assert (seen[inside] == triangles.index([3, 4, 5])).all() and (seen[~inside] == -1).all()
        assert (nearest[inside] == 2).all()


def test_a_ball_points_outward_everywhere_and_shades_its_far_side():
    from world.meshes import ellipsoid
    from world.raster import Shadow, ambient_occlusion, vertex_normals

    ball = ellipsoid((0, 0, 0), (0.5, 0.5, 0.5), rings=24)
    normals = vertex_normals(ball.vertices, ball.triangles)
    assert ((normals * ball.vertices / 0.5).sum(axis=1) > 0.99).all()
    shadow = Shadow(ball.vertices, ball.triangles, np.array([0.3, 0.2, 1.0]))
    np.testing.assert_allclose(shadow.view @ shadow.view.T, np.eye(3), atol=1e-5)
    assert abs(shadow.depths.max() - 0.5) < 0.01  # of the point that is nearest to the light
    assert ambient_occlusion(ball.vertices, ball.triangles, normals).mean() > 0.9
