"""Measurements, each as a ratio in one run on one machine. Not tests: a busy machine fails nothing here."""
