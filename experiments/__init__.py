"""Recipes: one file per data set, which reads like the rows of its results table.

A recipe has a `base` experiment, `rows` (what each line of the table puts into the three slots)
and, where it can make its own data, a `prepare` function that returns the base with its paths.
"""
