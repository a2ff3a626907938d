"""What training needs beside networks and losses: the order of cases, augmentation, pretrained weights."""
