"""A small world of synthetic people: heads of a parametric human, drawn as talking clips with captions and exact facts.

Legend: V vertices, T triangles, N frames, H W pixels. Head coordinates: x to the image's right, y up, z toward the viewer; the
unit is the height of the average head with its neck, the origin its middle. Colours are linear RGB in [0, 1].
"""
