"""What a person asks of a node, as commands: their arguments, and how their answers look."""
