"""Real processes under test: the daemon as a user starts it, sources of our own, and an oracle that lives outside the product."""
