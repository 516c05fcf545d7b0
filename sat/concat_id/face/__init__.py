"""From a photograph to the reference picture that the model sees: detection, alignment, parsing, masking."""
