"""The rules of other programs that a Service's packets meet on this node, and their verdicts."""
