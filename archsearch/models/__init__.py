"""Models: an architecture built as a torch module, its counts, feature maps, official checkpoints, and their validation."""
