"""The Wan2.1 backbone."""
