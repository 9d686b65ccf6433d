"""Groups of several processes on one or more machines, over `mx.distributed`."""
