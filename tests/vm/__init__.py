"""The virtual machine that tests marked `vm` run in: another kernel, on this very working tree.

The machine's own kernel may lack IPVS, SCTP sockets and the dummy device; Debian's has them. It is
booted with virtme-ng under QEMU, in software, so that nothing of the machine has to allow it.
"""
