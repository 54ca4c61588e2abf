"""Evaluation of a representation: protocols that take a backbone and return numbers, independent of logging."""
