"""Writes the manifest files that training and evaluation read; one file for each dataset.

    annotation files -annotations, labels-> entries -videos-> files -leaks, captions-> report

One file per data set says how its official files are read; `prepare` puts them together, behind
`videoclip data prepare`. `folders` is for your own videos, `unpack` for archives from strangers.
`moving_shapes` generates a benchmark instead of converting one: short clips whose captions can
only be told apart by the order of the frames.
"""
