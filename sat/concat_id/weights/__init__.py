"""Weights on disk: folders, checkpoints and pickles read as data, and encodings that are kept."""
