"""The daemon on a simulated disk, store and catalog: one seed is one schedule of work and faults."""
