"""The agent's cost at scale, measured in a network namespace of its own."""
