"""Monitors: what a training run looks like from inside, and words for what goes wrong."""
