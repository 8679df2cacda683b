"""Kernels: how a sample is drawn and which Jacobian it is given.

`eager` is the specification in plain torch; `dispatch.launch` is the one door to it.
"""
