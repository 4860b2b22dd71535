"""Two hosts on one machine: network namespaces, torchrun in each, and what is done to them."""
