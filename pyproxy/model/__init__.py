"""What Services, EndpointSlices and Nodes say, as frozen typed values."""
