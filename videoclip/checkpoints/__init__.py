"""Weights <-> model: every project's files, read without executing them, and written back."""
