"""From prompts and photos to finished folders."""
