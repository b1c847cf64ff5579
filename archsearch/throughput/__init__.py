"""Throughput of networks: the protocol, timing, GPU telemetry, the benchmark command, and prediction from a calibration."""
