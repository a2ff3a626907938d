"""The demonstration: the whole chain on phantoms, through nnU-Net's own commands, with a report."""
