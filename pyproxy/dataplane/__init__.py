"""What the kernel should hold, compared with what it holds, and written to it."""
