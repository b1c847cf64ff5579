"""The audit of a proxy task: trainings, rank statistics of how well it orders architectures, and its one-sentence verdict."""
