"""Sweeps: all runs of an experiment, on this machine or on a cluster, whatever is killed."""
