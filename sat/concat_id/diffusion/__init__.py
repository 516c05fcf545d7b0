"""Noise, denoising and training loss as functions of a `network` callable; no network class is known here."""
