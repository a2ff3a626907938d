"""Image files, their grids, label maps and data sets' descriptions."""
