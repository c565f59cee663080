"""Scores -> loss -> weights: losses, optimizers, one step, the loop, and how a run goes on."""
