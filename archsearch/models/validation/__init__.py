"""Validation of checkpoints: preprocessing as in the papers, accuracy, and the comparison with published figures."""
