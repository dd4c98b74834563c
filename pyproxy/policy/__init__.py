"""The routing of Services on this node, as pure functions of the model."""
