"""nfnetlink by hand: messages as bytes, a batch as one send, refusals by name."""
