"""From a photograph to the reference image that the model sees: detection, alignment, parsing, masking."""
