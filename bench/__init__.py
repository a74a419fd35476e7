"""Benchmarks of kmodd against its peers in the same run."""
