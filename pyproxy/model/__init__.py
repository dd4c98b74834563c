"""Services, EndpointSlices, Nodes and addresses as frozen typed values."""
