"""Commands that inspect this node: their arguments and their output."""
