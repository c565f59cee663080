"""Writes the manifest files that training and evaluation read; one file for each dataset.

`moving_shapes` generates a benchmark instead of converting one: short clips whose captions can
only be told apart by the order of the frames.
"""
