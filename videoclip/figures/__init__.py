"""Scores -> numbers: metrics, intervals, classification, and the charts of both."""
