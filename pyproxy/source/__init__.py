"""Sources of Services, EndpointSlices and the Node: an API server or a folder of manifests."""
