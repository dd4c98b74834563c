"""Where the cluster's objects come from: an API server, or a folder of manifests."""
