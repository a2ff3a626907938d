"""Measurements on label maps: surfaces and lesions."""
