"""What the libraries under dolake do, as far as dolake depends on it: the traps that it works around, and the inner parts that it uses.

A test here that fails says that a library has changed, not that dolake is wrong. Each docstring says what is claimed and which
code rests on it: where a trap is gone its work-around may go too, where an inner part has moved that code must follow.
"""
