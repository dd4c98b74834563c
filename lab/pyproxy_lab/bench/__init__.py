"""`pyproxy bench`: agents measured from outside, in turn, before one API server and one kernel."""
