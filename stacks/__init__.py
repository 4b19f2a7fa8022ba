"""Lifecycles: foundation, network, training."""
