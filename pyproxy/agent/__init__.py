"""The agent: the only place that ties source, policy and dataplane together."""
