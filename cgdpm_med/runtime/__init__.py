"""How networks run on the machine there is: precision, copies, graphs, fused layers, memory, processes."""
