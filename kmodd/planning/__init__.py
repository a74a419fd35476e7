"""From a request to a plan, and from an outcome to a record; pure."""
