"""Runtimes other than torch, in which networks are timed as they are shipped: one contract, one file each."""
