"""Controllers, a scheduler and a kubelet: what makes pods of the workloads that people type."""
