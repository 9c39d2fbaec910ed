"""Runs: configurations, training, evaluation."""
