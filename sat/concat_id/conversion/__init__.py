"""SAT checkpoints to diffusers folders and back."""
