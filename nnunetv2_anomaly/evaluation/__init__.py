"""Evaluation of models over the cases of a data set."""
