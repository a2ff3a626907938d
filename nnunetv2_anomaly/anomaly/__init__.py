"""The error image and the focal weight, each defined once (method paper, Section 3.1, Eq. 4)."""
