"""The indexes of one module tree, and aliases matched against them; pure."""
