"""What is measured, each beside its peer in the same run. `python3 -m bench` prints all and writes results.json."""
