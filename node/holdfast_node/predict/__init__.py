"""Predictions that do not give the model away: a verified model behind a small, hardened endpoint.

`predictor` answers for arrays, `disclosure` decides what of an answer leaves, `limits` how much of it one client gets,
`requests` what a request may be, `service` serves it over mutual TLS 1.3, and `node` is the predictor's agent.
"""
