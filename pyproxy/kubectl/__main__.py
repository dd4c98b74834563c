"""`python -m pyproxy.kubectl` is the program `kubectl-pyproxy`."""

import sys

from pyproxy.kubectl.main import main

sys.exit(main())
