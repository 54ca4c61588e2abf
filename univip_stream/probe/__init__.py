"""Probes of frozen features: labelled images, their features, and kNN classification."""
