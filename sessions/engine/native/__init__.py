"""CPU kernels in C++: their source, their build and their typed calls. Optional: torch stands in for them."""
