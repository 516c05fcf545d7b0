"""Concat-ID: identity-preserving text-to-video generation by appending reference latents to the video's.

Tensors are named after one legend throughout: B batch, F pixel frames, T latent frames, R reference images,
C channels, H W height and width, L text tokens, S tokens of the whole sequence, D width, N attention heads.
Pixels are in [-1, 1], sizes are (height, width), latents are (B, T, C, H, W).
"""
