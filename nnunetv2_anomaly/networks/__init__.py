"""Building blocks of the method's own networks (method paper, Appendix A)."""
