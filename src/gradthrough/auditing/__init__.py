"""Audits: which estimator is right for a function, a model, and a training run."""
