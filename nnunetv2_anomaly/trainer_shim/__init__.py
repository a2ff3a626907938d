"""What nnU-Net finds of this package: see nnunetv2_anomaly_trainers.py."""
