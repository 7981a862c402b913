"""Merges of networks and of adapters, against which a generator must hold its own as against other averages."""
