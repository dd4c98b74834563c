"""The rules of other programs that a packet would meet, in nf_tables and in legacy tables."""
