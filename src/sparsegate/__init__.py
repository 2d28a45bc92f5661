"""Retrain language models by updating only the weights that matter, behind gates, into MLflow."""

__version__ = "0.1.0"
