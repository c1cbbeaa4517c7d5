"""Ray Serve on one machine: a cluster for a measurement, clients that keep it backlogged, and a router that pins."""
