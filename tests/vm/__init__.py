"""Run the tests marked `vm` in a virtual machine, on this working tree and another kernel.

The host's kernel may lack IPVS, SCTP sockets and the dummy device; Debian's has them. virtme-ng
boots it under QEMU without KVM, so that the host needs no rights.
"""
