"""Where and when: sinusoidal timesteps, rotary and sin-cos positions on the (frame, row, column) grid of tokens."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

LONGEST_PERIOD = 10000.0  # of sinusoids, over 2 pi
TABLES = 8  # of positions, kept


def timestep_embedding(timestep: Tensor, width: int) -> Tensor:
    """Embed integer timesteps (B,) as sinusoids (B, width), cosines first; float32."""
    half = width // 2
    frequencies = torch.exp(-math.log(LONGEST_PERIOD) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half)
    angles = timestep.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotary_table(grid: tuple[int, int, int], head_size: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine (S, head_size / 2) of each token's rotation angles, for S = T*H*W tokens in (t, h, w) order.

    A head's channels are shared out t:h:w = 1/4 : 3/8 : 3/8; within a share the angle of pair j at integer position p is
    p / 10000^(2j / share). Reference i of a video of T frames is frame T+i of the same grid.
    """
    height_share = width_share = head_size * 3 // 8
    shares = (head_size - height_share - width_share, height_share, width_share)
    angles = []
    for axis, (length, share) in enumerate(zip(grid, shares, strict=True)):
        frequencies = LONGEST_PERIOD ** (-torch.arange(0, share, 2, dtype=torch.float32) / share)
        along = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
        shape = [1, 1, 1, share // 2]
        shape[axis] = length
        angles.append(along.view(shape).expand(*grid, share // 2))
    table = torch.cat(angles, dim=-1).flatten(0, 2)
    return table.cos(), table.sin()


def rotary(head_size: int, grid: tuple[int, int, int], text_length: int, device: torch.device) -> Tensor:
    """`rotary_table` as one tensor (L + S, 1, head size / 2, 2), with rows of angle zero for text: one product serves the sequence."""
    cos, sin = rotary_table(grid, head_size)
    cos, sin = torch.cat([cos.new_ones(text_length, cos.shape[1]), cos]), torch.cat([sin.new_zeros(text_length, sin.shape[1]), sin])
    return torch.stack([cos, sin], dim=-1)[:, None].to(device)


def remembered(make: Callable[..., Tensor], *settings: Any) -> Callable[..., Tensor]:
    """Keep the tables that `make(*settings, ...)` gives for the last few shapes: training alternates between some, one may take 100 MB."""

    @lru_cache(TABLES)
    @torch.inference_mode(False)  # a table made while sampling serves training too
    def table(*shape: Any) -> Tensor:
        return make(*settings, *shape)

    return table


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs of x (B, S, N, head size) by cosines and sines (S, 1, head size / 2, 2), in float32."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # the same sums: inductor knows no complex numbers, and makes one pass of norm and flip
        cos, sin = table.unsqueeze(-2).unbind(-1)  # (S, 1, head size / 2, 1)
        sign = 2 * torch.arange(2, device=x.device) - 1
        rotated = pairs * cos + pairs.flip(-1) * (sign * sin)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table))
    return rotated.flatten(-2).type_as(x)


def _sincos(positions: Tensor, width: int) -> Tensor:
    """Sines then cosines (positions, width) of positions / 10000^(2j / width)."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.outer(positions.double(), frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sincos_table(grid: tuple[int, int, int], width: int, interpolation: tuple[float, float, float]) -> Tensor:
    """Position embedding (S, width) of CogVideoX-2B: a quarter of the channels for time, then 3/8 for columns, 3/8 for rows.

    Positions are grid indices divided by `interpolation` (time, height, width).
    """
    frames, height, columns = grid
    time_width, space_width = width // 4, width // 4 * 3 // 2
    over_time = _sincos(torch.arange(frames) / interpolation[0], time_width)
    over_rows = _sincos(torch.arange(height) / interpolation[1], space_width)
    over_columns = _sincos(torch.arange(columns) / interpolation[2], space_width)
    table = torch.cat([
        over_time[:, None, None].expand(frames, height, columns, time_width),
        over_columns[None, None].expand(frames, height, columns, space_width),
        over_rows[None, :, None].expand(frames, height, columns, space_width),
    ], dim=-1)  # fmt: skip
    return table.flatten(0, 2).float()
