"""The `http` process: everything HTTP of a daemon."""
