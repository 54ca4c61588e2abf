"""Judging a representation: protocols that take features and give numbers, and know nothing of logging."""
