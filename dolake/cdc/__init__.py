"""Frames into batches, batches into answers: the wire protocol, its sessions, its server and its producer library."""
