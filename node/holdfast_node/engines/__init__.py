"""Training engines: MXNet first; a second one will stand beside it behind the same interface."""
