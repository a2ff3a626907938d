"""The method paper's networks UNET and CAN, their losses and data loading."""
