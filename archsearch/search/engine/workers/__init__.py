"""Workers: where evaluations happen. `base` is the interface that the driver knows, `process` the worker on this machine."""
