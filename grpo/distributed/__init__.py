"""Several processes, one run: sharing of prompts and gradients, and weights spread with FSDP2."""
