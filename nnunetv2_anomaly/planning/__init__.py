"""Plans whose patch is the whole image, and what training with them costs in memory."""
