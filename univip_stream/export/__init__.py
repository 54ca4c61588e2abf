"""Export of weights, boxes and model cards to files that other software reads."""
