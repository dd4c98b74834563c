"""What the agent costs at scale, measured in a network namespace of its own."""
