"""IPVS: virtual services and real servers, their addresses on a device, and rules around them."""
