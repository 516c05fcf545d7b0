"""Training data: lists of clips, their frames by time, references, and the order in which all of it is seen."""
