"""One module per client protocol; each parses requests into, and renders answers from, the conductor's records."""
