"""Tiny roles for the tests of supervision: each does one thing that a real role may do."""
