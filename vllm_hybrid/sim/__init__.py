"""Drives the real scheduler classes without a model."""
