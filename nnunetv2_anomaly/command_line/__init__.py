"""The verbs of the nnUNetv2_anomaly command: each one thin function over one library function."""
