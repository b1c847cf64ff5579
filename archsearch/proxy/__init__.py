"""Proxy tasks: the data a candidate is trained on for a few steps, and the training that scores it."""
