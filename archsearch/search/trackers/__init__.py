"""Trackers: a run's figures also for TensorBoard, MLflow and Weights & Biases; one file for each."""
