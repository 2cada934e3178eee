"""Readers of image files and data sets, and transformations of images."""
