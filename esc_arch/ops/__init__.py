"""Pure functions on tensors: no parameters, no BasicSR."""
