"""Configurations of the jobs: the method's fields, with data, resources and output."""
