"""Study folders become nnU-Net raw data sets."""
