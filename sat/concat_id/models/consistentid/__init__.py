"""ConsistentID's adapter of Stable Diffusion 1.5 (arXiv:2404.16771): identity tokens in every cross-attention, face parts in the text."""
