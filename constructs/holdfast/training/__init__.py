"""What trains: the three fleets, their shared checkpoints and the state machine that runs a job."""
