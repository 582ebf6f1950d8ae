"""The processes of a daemon: the supervisor of `dolake serve`, and what each of its children does before its own work."""
