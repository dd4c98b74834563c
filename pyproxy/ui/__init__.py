"""The page: what the commands say, for those who would rather look. Read-only."""
