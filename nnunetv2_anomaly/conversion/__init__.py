"""Study folders of the Osteoarthritis Initiative, and what was segmented in them, on their way to nnU-Net."""
