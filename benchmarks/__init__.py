"""Measurements, run by hand: timings are never asserted in tests."""
