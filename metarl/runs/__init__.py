"""Runs: what a training run leaves on disk."""
