"""Experiment trackers: what a training writes to disk, mirrored into wandb, trackio or mlflow."""
