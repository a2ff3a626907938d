"""The paper's experiments as sequences of nnU-Net's own commands."""
