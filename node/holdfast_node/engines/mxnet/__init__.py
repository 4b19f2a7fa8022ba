"""Apache MXNet 1.9.1 behind Holdfast's wire: launchers, and a parameter server that executes nothing it is sent.

MXNet is imported by the launchers only; the agent, which prepares a launch, never loads it.
"""
