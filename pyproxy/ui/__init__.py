"""The page: the agent's status and Services in a browser, read-only."""
