"""HTTP endpoints for kubelet, load balancers and Prometheus."""
