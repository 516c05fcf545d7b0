"""Images and videos as pixels: loading, colour, resizing, writing."""
