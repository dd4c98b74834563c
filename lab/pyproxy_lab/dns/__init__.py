"""The cluster's names: Services and pods by DNS, as the specification of Kubernetes has them."""
