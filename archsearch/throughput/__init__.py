"""Throughput of networks: the protocol, timing, GPU telemetry, the benchmark command, and prediction from a calibration."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
