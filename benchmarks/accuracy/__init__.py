"""Accuracy on test beds of every kind, beside PatchCore and PaDiM: ``python -m benchmarks.accuracy``."""
