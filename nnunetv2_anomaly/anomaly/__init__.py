"""What is made of a reconstruction: error image, error channel, focal weight (method paper, Section 3.1, Eq. 4)."""
