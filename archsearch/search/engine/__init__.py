"""The engine: a driver that asks, tells and is the only writer, and workers that evaluate."""
