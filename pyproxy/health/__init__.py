"""What load balancers, kubelet and Prometheus ask this node over HTTP."""
