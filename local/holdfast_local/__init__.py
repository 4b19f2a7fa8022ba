"""One machine that is enough: an embedded AWS and the hosts that its Auto Scaling groups ask for."""
